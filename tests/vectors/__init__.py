"""The wire vectors, and the codecs that must pass them."""
