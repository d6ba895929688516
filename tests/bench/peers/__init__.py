"""Tests of the comparisons with other engines and servers."""
