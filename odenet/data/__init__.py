"""Data to run networks on, as NumPy: `digits` is real and needs no download."""

from odenet.data.digits import batch, digits

__all__ = ["batch", "digits"]
