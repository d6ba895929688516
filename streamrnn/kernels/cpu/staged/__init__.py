"""The staged path: cells that need a whole row before they can go on."""
