"""The network in training: layers, losses, and their gradients."""
