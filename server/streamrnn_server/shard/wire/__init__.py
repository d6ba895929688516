"""Messages in and out: receive, decode, encode, reply."""
