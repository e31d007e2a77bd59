"""What tests leave to chance, the same in each run whatever ran before: CI divides files among processes as they come.

Numbers that are drawn without a seed, and which steps of a pass have their turn to be looked at, are those of the name
of the test and of `--chance N`, by which other ones are tried.
"""

from __future__ import annotations

import itertools
import random
import sys
import zlib

_PASSES = "odenet_torch.field.witness"


def set_chance(name: str, chance: int) -> None:
    """Begin a test of this name.

    Args:
        name: of the test.
        chance: other numbers for each.
    """
    seed = zlib.crc32(f"{name} {chance}".encode())
    random.seed(seed)
    for module, function in (("numpy", "random.seed"), ("torch", "random.manual_seed")):
        if module in sys.modules:
            place, _, verb = function.partition(".")
            getattr(getattr(sys.modules[module], place), verb)(seed)
    if _PASSES in sys.modules:
        vars(sys.modules[_PASSES])["_passes"] = itertools.count(seed)
