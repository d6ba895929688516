"""From what an importer has read to a model."""
