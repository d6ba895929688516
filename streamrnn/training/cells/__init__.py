"""Cells beside each other: each trained over some seeds on the same rows, and a verdict."""
