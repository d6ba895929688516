"""The state directory: records on disk, the thread that writes them, look-ups."""
