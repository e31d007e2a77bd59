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

_LAST: dict[torch.device, list[Tensor]] = {}


def state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators of the host and of the device: the same list for as long as nothing is drawn.

    That of the host takes 5 kB, which each layer of a network keeps.
    """
    states = [torch.default_generator.get_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    last = _LAST.get(device)
    if last is not None and same(last, states):
        return last
    _LAST[device] = states
    return states


def restore(device: torch.device, states: list[Tensor]) -> None:
    """Set torch's generators to states that `state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether nothing was drawn between."""
    return one is other or [*map(_sampled, one)] == [*map(_sampled, other)]


def _sampled(generator: Tensor) -> bytes:
    """Of a generator's state what each draw changes: its seed and counts, words of a Mersenne twister, and at the end a
    normal number that waits. All of its 5 kB, read in each call of a layer, would push what that reads out of the
    fastest cache."""
    address, size = generator.data_ptr(), generator.nbytes
    return ctypes.string_at(address, min(size, 128)) + ctypes.string_at(address + max(size - 64, 0), min(size, 64))


@contextlib.contextmanager
def others() -> Iterator[Callable[[], bool]]:
    """Python's and NumPy's generators are left as they are; yields whether something was drawn from them."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    before = pickle.dumps(numpy)  # bytes: to print the 624 numbers of a state takes milliseconds

    def drawn() -> bool:
        return random.getstate() != python or pickle.dumps(np.random.get_state(legacy=False)) != before

    try:
        yield drawn
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
