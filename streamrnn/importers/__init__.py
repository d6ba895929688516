"""Importers of other frameworks' models, one file a format."""
