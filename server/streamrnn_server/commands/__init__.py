"""The subcommands of the server: serve, keys, status, top."""
