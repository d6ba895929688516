"""Programs that run in the peers' own Python: nothing here imports streamrnn or numba."""
