"""Residual stacks, neural ODEs, and the networks of a `NetSpec`."""
