"""Write models as PyTorch modules and their state dicts."""
