"""The state of random number generators: torch's, which is replayed, and others, which are not."""

from __future__ import annotations

import contextlib
import ctypes
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LAST: dict[torch.device, tuple[list[bytes], list[Tensor]]] = {}


def state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators of the host and of the device: the same list for as long as nothing is drawn.

    That of the host takes 5 kB, which each layer of a network keeps.
    """
    states = [torch.default_generator.get_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    samples = [*map(_sampled, states)]
    last = _LAST.get(device)
    if last is not None and last[0] == samples:
        return last[1]
    _LAST[device] = samples, states
    return states


def restore(device: torch.device, states: list[Tensor]) -> None:
    """Set torch's generators to states that `state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def read(device: torch.device) -> list[bytes]:
    """The same states as bytes, which can be compared."""
    return [*map(_bytes, state(device))]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether nothing was drawn between."""
    return one is other or [*map(_sampled, one)] == [*map(_sampled, other)]


def _sampled(generator: Tensor) -> bytes:
    """Of a generator's state what each draw changes: its seed and counts, words of a Mersenne twister, and at the end a
    normal number that waits. All of its 5 kB, read in each call of a layer, would push what that reads out of the
    fastest cache."""
    address, size = generator.data_ptr(), generator.nbytes
    return ctypes.string_at(address, min(size, 128)) + ctypes.string_at(address + max(size - 64, 0), min(size, 64))


def draws(run: Callable[[], Any], now: Callable[[], Any]) -> bool:
    """Whether a run draws random numbers: that a generator has moved may be the work of another thread, which does not
    move it in each of three runs.

    Args:
        run: what may draw.
        now: what tells by `==` whether a generator has moved.
    """
    for _ in range(3):
        before = now()
        run()
        if now() == before:
            return False
    return True


@contextlib.contextmanager
def others() -> Iterator[Callable[[], bool]]:
    """Python's and NumPy's generators are left as they are; yields whether something was drawn from them."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    before = outside()
    try:
        yield lambda: outside() != before
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def outside() -> bytes:
    """What is another value once somebody, in any thread, has drawn from Python's or NumPy's generator.

    Asked for around every evaluation: of a Mersenne Twister its count, and a word that is renewed when that begins
    anew, which takes a fifth of a microsecond where the whole state takes fifty.
    """
    if np.random.mtrand._rand._bit_generator is _BITS:  # pyright: ignore[reportAttributeAccessIssue]
        return b"".join([window.raw for window in _WINDOWS])
    return pickle.dumps([of(generator) for generator in GLOBAL])


GLOBAL: tuple[Any, ...] = random._inst, np.random.mtrand._rand  # pyright: ignore[reportAttributeAccessIssue]
"""Python's generator and NumPy's."""
_BITS = GLOBAL[1]._bit_generator
_WINDOWS = [
    (ctypes.c_char * 8).from_address(place)
    for place in (
        id(GLOBAL[0]) + object.__basicsize__,  # the count, then the words
        _BITS.ctypes.state_address + 623 * 4,  # the last of 624 words, then the count
    )
]
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
"""Classes of generators that are not replayed."""


def named(names: frozenset[str], module: object) -> Iterator[Any]:
    """The generators that code draws from which reads attributes of these names, of Python's or NumPy's module."""
    functions = vars(np.random if module is np else module) if module in (random, np, np.random) else {}
    for name in names & functions.keys():
        yield getattr(functions[name], "__self__", None)


def of(generator: Any) -> Any:
    """The state of a generator of another than torch's own, to be compared."""
    match generator:
        case torch.Generator():
            return _bytes(generator.get_state())
        case np.random.Generator():
            return pickle.dumps(generator.bit_generator.state)
        case np.random.RandomState():
            return pickle.dumps(generator.get_state(legacy=False))
        case _:
            return generator.getstate()


def _bytes(generator: Tensor) -> bytes:
    """The bytes of a generator's state, without an operation of torch, since every evaluation calls this."""
    return ctypes.string_at(generator.data_ptr(), generator.nbytes)
