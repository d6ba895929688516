"""Tests of the shard's structs and memory."""
