"""Batches: at most one step of each of many streams, computed together."""
