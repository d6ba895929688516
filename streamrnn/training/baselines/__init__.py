"""Simple predictors on the rows of a network, and whether it is better than they are."""
