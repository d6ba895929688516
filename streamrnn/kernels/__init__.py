"""The step made fast: the mathematics of `streamrnn.reference` as compiled code."""
