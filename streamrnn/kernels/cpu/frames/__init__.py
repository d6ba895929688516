"""Layers over frames: how they become operations, and how these are computed."""
