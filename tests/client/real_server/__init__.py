"""Tests of the client with a real server."""
