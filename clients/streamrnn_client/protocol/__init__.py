"""The wire protocol, in Python without sockets; the server uses it too."""
