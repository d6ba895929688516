"""Tests of the network: forward, backward, feedback."""
