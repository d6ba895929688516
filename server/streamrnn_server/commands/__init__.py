"""The subcommands of the server: serve, compile, keys, status, top."""
