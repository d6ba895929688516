"""ONNX files: nodes, cells that were written out, frames."""
