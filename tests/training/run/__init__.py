"""Tests of how a training is run: its files, signals, settings, outputs."""
