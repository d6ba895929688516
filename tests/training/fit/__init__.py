"""Tests of the training loop: what is trained at once, updates, the weights that are kept."""
