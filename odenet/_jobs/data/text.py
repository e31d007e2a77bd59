"""Text that Python itself ships: the topics of its language reference, as characters."""

from __future__ import annotations

from functools import cache

import numpy as np

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,;:()[]{}'\"*=_-+<>/\\0123456789\n"
"""The distinct characters; capitals are converted to small letters, and all others to spaces."""


@cache
def _codes() -> np.ndarray:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    places = {character: place for place, character in enumerate(CHARACTERS)}
    return np.array([places.get(character, places[" "]) for character in text])


def lines(part: str, batch: int, length: int, seed: int) -> np.ndarray:
    """Random pieces of the text, as places in CHARACTERS, shape (batch, length).

    Args:
        part: "train" is the first nine tenths of the text, "test" the last.
        batch, length: how many pieces, and of how many characters.
        seed: of which.
    """
    codes = _codes()
    border = len(codes) * 9 // 10
    some = codes[:border] if part == "train" else codes[border:]
    starts = np.random.default_rng([seed, part == "test"]).integers(len(some) - length, size=batch)
    return some[starts[:, None] + np.arange(length)]
