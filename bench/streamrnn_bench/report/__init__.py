"""How results are timed, compared and written."""
