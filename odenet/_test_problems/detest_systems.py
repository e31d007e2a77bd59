"""The systems of DETEST's class C: linear chains with their solutions, and the outer planets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def matrix(
    size: int, diagonal: Callable[[int], float], below: Callable[[int], float], above: float
) -> list[list[float]]:
    """A matrix of three diagonals: `diagonal(i)` and `below(i)` in row i, and the same number above everywhere."""
    entries = {0: diagonal, 1: below, -1: lambda _: above}
    return [[entries[i - j](i) if i - j in entries else 0.0 for j in range(size)] for i in range(size)]


def decays(t: float) -> list[float]:
    """Poisson's distribution, the rest in the last."""
    first = [math.exp(-t) * t**i / math.factorial(i) for i in range(9)]
    return [*first, 1 - sum(first)]


def births(t: float) -> list[float]:
    """Yule's process: a geometric distribution, the rest in the last."""
    p = -math.expm1(-t)
    return [*(math.exp(-t) * p**i for i in range(9)), p**9]


def heat(size: int) -> Callable[[float], list[float]]:
    """By the sine waves, which are the eigenvectors."""
    angle = math.pi / (size + 1)

    def solution(t: float) -> list[float]:
        waves = [(k, math.sin(k * angle) * math.exp(-4 * t * math.sin(k * angle / 2) ** 2)) for k in range(1, size + 1)]
        return [2 / (size + 1) * sum(c * math.sin(i * k * angle) for k, c in waves) for i in range(1, size + 1)]

    return solution


GRAVITY, SUN = 2.95912208286, 1.00000597682  # the inner planets are with the sun
MASSES = (0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5)
_POSITIONS = [
    [3.42947415189, 3.35386959711, 1.35494901715],
    [6.64145542550, 5.97156957878, 2.18231499728],
    [11.2630437207, 14.6952576794, 6.27960525067],
    [-30.1552268759, 1.65699966404, 1.43785752721],
    [-21.1238353380, 28.4465098142, 15.3882659679],
]
_VELOCITIES = [
    [-0.557160570446, 0.505696783289, 0.230578543901],
    [-0.415570776342, 0.365682722812, 0.169143213293],
    [-0.325325669158, 0.189706021964, 0.0877265322780],
    [-0.0240476254170, -0.287659532608, -0.117219543175],
    [-0.176860753121, -0.216393453025, -0.0148647893090],
]
PLANETS = (_POSITIONS, _VELOCITIES)
PULLS = {
    "others": [[m * (j != k) for k, m in enumerate(MASSES)] for j in range(5)],
    "sun": [[m + SUN * (j == k) for k, m in enumerate(MASSES)] for j in range(5)],
    "unit": [[float(j == k) for k in range(5)] for j in range(5)],
}


def planets(t: Any, y: Any, w: Any) -> Any:
    """Row j of the state is planet j, from the sun. `w["others"]` has no diagonal, `w["unit"]` keeps 0/0 from it."""
    place, velocity = y
    apart = place[None, :, :] - place[:, None, :]
    near, far = apart * apart, place * place
    pull = w["others"] / (near[..., 0] + near[..., 1] + near[..., 2] + w["unit"]) ** 1.5
    fall = place / (far[:, 0:1] + far[:, 1:2] + far[:, 2:3]) ** 1.5
    return velocity, GRAVITY * ((pull[:, None, :] @ apart)[:, 0] - w["sun"] @ fall)
