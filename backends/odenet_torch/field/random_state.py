"""The state of random number generators: torch's, which is replayed, and others, which are not."""

from __future__ import annotations

import contextlib
import ctypes
import pickle
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    """Whether a run draws random numbers.

    Args:
        run: what may draw.
        now: what tells by `==` whether a generator has moved.
    """
    return bool(moved(run, lambda: [now()]))


def moved(run: Callable[[], Any], now: Callable[[], Sequence[Any]]) -> list[int]:
    """Which of some generators a run moves.

    That one has moved may be the work of another thread. Three runs that all move it move it themselves, if nobody
    does in a pause as long as a run; where somebody does, more runs are made, up to `_RUNS`, of which one that moves
    nothing is enough. A generator that the run seeds is after each run where it was after an earlier one.

    Args:
        run: what may draw.
        now: what tells by `==` whether each generator has moved.
    """
    first = last = now()
    places: list[int] = []
    for n in range(_RUNS):
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        current = now()
        several = enumerate(zip(current, last, first, strict=True))
        places = [place for place, (state, *earlier) in several if state not in earlier]
        last = current
        if not places:
            break
        if n >= 2:
            time.sleep(took)
            current = now()
            if not any(current[place] != last[place] for place in places):
                break
            last = current
    return places


_RUNS = 16  # while other threads draw: one that draws so often that none of these is free of it cannot be told apart


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
    if _WINDOWS is not None and np.random.mtrand._rand._bit_generator is _BITS:  # pyright: ignore[reportAttributeAccessIssue]
        return b"".join([window.raw for window in _WINDOWS])
    return pickle.dumps([of(generator) for generator in GLOBAL])


def _places(python: random.Random, numpy: np.random.RandomState) -> tuple[int, int]:
    """Where the count of each and a word beside it lie: in CPython before its words, in NumPy after them."""
    bits: Any = numpy._bit_generator  # pyright: ignore[reportAttributeAccessIssue]
    return id(python) + object.__basicsize__, bits.ctypes.state_address + 623 * 4


def _windows() -> list[Any] | None:
    """Eight bytes of Python's generator and as many of NumPy's; None where these are not what they are taken for, in
    another Python or NumPy, as generators of our own show by what they say of themselves."""
    if sys.implementation.name != "cpython" or type(_BITS) is not np.random.MT19937:
        return None
    python, numpy = random.Random(1), np.random.RandomState(1)
    windows = [*map(_WINDOW.from_address, _places(python, numpy))]
    for count in (0, 1, 400):  # within the first 624 words, and when they have begun anew
        for _ in range(count):
            python.random()
            numpy.random_sample()
        words, state = python.getstate()[1], numpy.get_state(legacy=False)["state"]
        said = struct.pack("=iI", words[-1], words[0]), struct.pack("=Ii", int(state["key"][-1]), state["pos"])
        if said != tuple([window.raw for window in windows]):
            return None
    return [*map(_WINDOW.from_address, _places(*GLOBAL))]


_WINDOW = ctypes.c_char * 8
GLOBAL: tuple[Any, ...] = random._inst, np.random.mtrand._rand  # pyright: ignore[reportAttributeAccessIssue]
"""Python's generator and NumPy's."""
_BITS = GLOBAL[1]._bit_generator
_WINDOWS = _windows()
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
"""Classes of generators that are not replayed."""


def named(names: frozenset[str], module: object) -> Iterator[Any]:
    """The generators that code draws from which reads attributes of these names, of Python's or NumPy's module."""
    # by identity: what is compared with an array of NumPy is compared with each of its entries
    drawing = any(module is known for known in (random, np, np.random))
    functions = vars(np.random if module is np else module) if drawing else {}
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
