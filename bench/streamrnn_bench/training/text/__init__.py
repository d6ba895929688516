"""Texts, character by character, beside n-grams."""
