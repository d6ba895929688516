"""Tests of `streamrnn export`."""
