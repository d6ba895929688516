"""The shard's memory: headers, index of ids, arena, budget."""
