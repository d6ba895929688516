"""The demonstration, and measurements against peers and against the machine's own limits."""
