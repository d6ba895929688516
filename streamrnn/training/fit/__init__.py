"""Fitting: the loop over epochs, and the optimisers."""
