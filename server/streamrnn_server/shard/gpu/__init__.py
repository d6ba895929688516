"""The shard's loop and its transfers when a GPU computes."""
