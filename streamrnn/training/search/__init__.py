"""Settings chosen by short trainings within a budget, and the seed that is best of several."""
