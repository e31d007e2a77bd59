"""How f, its weights and its random state are called again exactly."""
