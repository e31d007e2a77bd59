"""Data to run networks on, as NumPy: `digits` is real and needs no download."""

from odenet.data.digits import batch, digits
from odenet.data.images import Images, ImageSet
from odenet.data.sets import image_set

__all__ = ["ImageSet", "Images", "batch", "digits", "image_set"]
