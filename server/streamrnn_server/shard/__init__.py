"""The shard: one compiled loop, from the socket to the reply."""
