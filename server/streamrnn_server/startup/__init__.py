"""What is done once before a server serves: load models, choose a device, compile."""
