"""What a server keeps on disk: copies of it, and streams that leave it."""
