"""`convert`: layers inside a model of equinox or flax.nnx that somebody else wrote are the steps of a solver."""
