"""The kinds of layers that a model is made of."""
