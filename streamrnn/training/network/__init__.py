"""The trainer's network: layers with their gradients, and losses."""
