"""The trainer beside others, and one update of it."""
