"""What both clients share: operations, replay, what is kept of each stream."""
