"""Timing, comparison and output of results."""
