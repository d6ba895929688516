"""Requests on their way through a shard."""
