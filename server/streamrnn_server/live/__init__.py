"""Models that come, go and take each other's place while the server runs."""
