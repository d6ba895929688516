"""Settings chosen within a budget."""
