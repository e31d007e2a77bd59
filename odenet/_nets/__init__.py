"""Networks that every backend can build, and their weights by name."""
