"""The subcommands bench and demo."""
