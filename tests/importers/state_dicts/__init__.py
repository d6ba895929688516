"""What a PyTorch state dict can hold, beside plain layers."""
