"""Who may connect, and by which key."""
