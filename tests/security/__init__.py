"""Keys, users, and what fails in the server itself."""
