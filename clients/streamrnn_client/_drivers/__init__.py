"""What runs a session's operations: sockets, threads, an event loop."""
