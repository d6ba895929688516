"""The demonstration: one story, told by a training, a server process and a client."""
