"""`odenet solve`."""
