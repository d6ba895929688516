"""Layers over frames and over time: how operators become them."""
