"""The tools of the paper's theory (Sander, Ablin and Peyre 2022), for any network: `from odenet import theory`.

Smoothness and roughness of weights in depth and the limit that a network is near, its distance to the Neural ODE with
what bounds it, the predicted error of recovered states, and limits over N. They are computed on the host, and by the
backend where the network's own field is asked.
"""

from odenet.theory._distance import Distance, distance
from odenet.theory._limits import Limit, Limits, limit, limits
from odenet.theory._reconstruction import Reconstruction, reconstruction, reversed_depth, way_back
from odenet.theory._smoothness import Roughness, largest_change, roughness, smoothness

__all__ = [
    "Distance",
    "Limit",
    "Limits",
    "Reconstruction",
    "Roughness",
    "distance",
    "largest_change",
    "limit",
    "limits",
    "reconstruction",
    "reversed_depth",
    "roughness",
    "smoothness",
    "way_back",
]


def __dir__() -> list[str]:
    return sorted(__all__)
