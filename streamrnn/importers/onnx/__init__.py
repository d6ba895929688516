"""ONNX files: a graph is followed from its input to its output, and nothing of it is run."""
