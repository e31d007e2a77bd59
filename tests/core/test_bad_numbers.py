"""Numbers of records: what is none, is not finite or is beyond all bounds is refused, and nothing is waited for."""

from __future__ import annotations

import numpy as np
import pytest

from odenet import Depth, DepthError, Event, InputError, NetSpec

HUGE, NAN = 10**400, float("nan")
NO_NUMBER = (HUGE, -HUGE, NAN, "a", "", True, 1j, [], {}, b"1", np.str_("0.1"), object(), np.array([1, 2]))


@pytest.mark.parametrize("name", ["depth", "width", "hidden", "grid", "classes", "horizon"])
def test_numbers_of_a_network(name):
    for value in NO_NUMBER:
        with pytest.raises(InputError, match=f"{name}="):
            NetSpec(**{name: value})


@pytest.mark.parametrize("name", ["inputs", "before", "after"])
def test_lists_of_a_network(name):
    for value in (HUGE, "a", None, {}, 3, [HUGE], [NAN], ["a"], [0], [True], np.array(NAN), (1,) * 40):
        with pytest.raises(InputError, match=name):
            NetSpec(**{name: value})


def test_numbers_of_an_event():
    for value in (*NO_NUMBER, -1.0):
        for name in ("tolerance", "subintervals"):
            with pytest.raises(InputError, match=name):
                Event(lambda t, y: t, **{name: value})
    for value in (*NO_NUMBER, 2):
        with pytest.raises(InputError, match="direction"):
            Event(lambda t, y: t, direction=value)


@pytest.mark.parametrize("kind", ["piecewise", "linear"])
@pytest.mark.parametrize("stacked", [True, False])
def test_numbers_of_weights_along_depth(kind, stacked):
    depth = Depth({"w": np.ones((4, 2))}, kind) if stacked else Depth.each([np.ones(2)] * 4, kind)
    for value in (HUGE, -HUGE, NAN, -1, "a", None, [], {}, 1.5):
        for ask in (depth.at, depth.refine, depth.fit, depth.coarsen, lambda n: depth.between(n, 0.5)):
            with pytest.raises(InputError):
                ask(value)
        with pytest.raises(DepthError):
            depth.place(value, depth.intervals)
    for value in (HUGE, NAN, -0.1, 1.1, "a", None, []):
        with pytest.raises(InputError, match="position"):
            depth.between(0, value)
    for layers in (3, "a", None, {}, [], np.array(1.0)):
        with pytest.raises(DepthError, match="layers"):
            Depth.each(layers, kind)
