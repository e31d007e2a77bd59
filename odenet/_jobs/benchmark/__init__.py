"""`odenet benchmark`."""
