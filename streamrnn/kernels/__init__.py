"""The step made fast: the mathematics of `streamrnn.cells` as compiled code."""
