"""Tests of tables: reading, columns, streams, parts."""
