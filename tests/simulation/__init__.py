"""The seeded simulations: networks, clocks, crashes."""
