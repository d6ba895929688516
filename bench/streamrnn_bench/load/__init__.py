"""Load on any running server: schedules, the compiled generator, latencies, capacity."""
