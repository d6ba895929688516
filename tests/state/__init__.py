"""Tests of records and the store."""
