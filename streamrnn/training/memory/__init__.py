"""What a network remembers, and how: by its gates, its gradients and its errors."""
