"""The trainer beside other ways to predict, on public data."""
