"""Keras files: what the configuration says is taken, and no class of it is made."""
