"""Write models for other frameworks, proved by running them there."""
