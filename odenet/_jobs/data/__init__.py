"""Data to run networks on, as NumPy: `digits` is real and needs no download."""

from odenet._jobs.data.digits import batch, digits
from odenet._jobs.data.images import Images, ImageSet
from odenet._jobs.data.sets import image_set

__all__ = ["ImageSet", "Images", "batch", "digits", "image_set"]
