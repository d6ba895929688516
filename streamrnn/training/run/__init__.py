"""Running a training: its files, its progress, its threads."""
