"""The subcommands of the engine and the trainer, one file each."""
