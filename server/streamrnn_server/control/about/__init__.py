"""What the server tells of itself, its shards and its streams."""
