"""What training does to weights, states and inputs so that a network learns for new streams."""
