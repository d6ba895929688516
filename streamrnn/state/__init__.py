"""What a stream is in memory: its slot, how it is found, and where what it needs lies."""
