"""Tests with failing disks, killed servers, damaged files and leaks."""
