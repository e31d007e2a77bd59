"""The gradient methods, one file each."""
