"""Streams: slots, owners, what requests do to them, eviction and return."""
