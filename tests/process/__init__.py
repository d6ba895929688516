"""The serving process: what surrounds it, and what restarts it."""
