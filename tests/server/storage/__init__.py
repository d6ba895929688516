"""What a server keeps on disk: journal, copies, streams that leave memory or the server."""
