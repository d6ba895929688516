"""Training data: files, tables, and streams cut into parts."""
