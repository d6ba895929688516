"""Tests of the project itself: packaging, imports, the command line."""
