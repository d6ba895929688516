"""Demonstration: the number of a subject, carried over distractors to its verb."""
