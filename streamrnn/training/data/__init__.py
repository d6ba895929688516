"""Training data: tables, columns, groups, segments."""
