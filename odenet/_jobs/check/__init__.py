"""`odenet check`."""
