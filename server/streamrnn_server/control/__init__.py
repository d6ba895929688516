"""Python threads that answer what compiled code cannot."""
