"""State and operations that both clients share, without sockets."""
