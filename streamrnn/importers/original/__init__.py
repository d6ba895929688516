"""Run the original of an imported model where its framework is installed."""
