"""Models of other frameworks, turned into ours."""
