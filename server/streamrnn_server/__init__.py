"""The server: one nopython loop from the ZeroMQ socket to the reply, and the command line."""
