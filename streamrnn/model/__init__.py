"""What a model is: its specification, its parameters, its file."""
