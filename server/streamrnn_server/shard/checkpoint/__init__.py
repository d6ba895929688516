"""Checkpoints: copies of changed streams on their way to the writer thread."""
