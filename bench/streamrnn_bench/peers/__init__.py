"""Servers that users would write or pick instead, measured beside ours."""
