"""The kernels for ARM, run in an emulator."""
