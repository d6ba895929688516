"""Files of every source, made here."""
