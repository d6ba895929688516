"""Write models as ONNX graphs."""
