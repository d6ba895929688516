"""A fuzzer for a live server: ``python -m tests.fuzz --help``."""
