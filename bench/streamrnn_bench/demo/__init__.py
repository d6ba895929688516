"""Demonstration: a training, a server process and a client."""
