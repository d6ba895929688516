"""Demonstration: Silero's voice activity detector, brought from its ONNX file and served."""
