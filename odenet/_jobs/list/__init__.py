"""`odenet list`."""
