"""Gradient descent on images, as `train` and `reproduce` share it."""
