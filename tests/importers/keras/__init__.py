"""Files of Keras: made without it, and by it."""
