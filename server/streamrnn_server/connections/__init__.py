"""Sockets of clients: bound, counted, and cut where they take all files or the memory."""
