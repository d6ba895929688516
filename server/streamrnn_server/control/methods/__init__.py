"""Methods of the protocol that Python answers, or prepares for a shard."""
