"""Weights along depth are one function of depth, however finely it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import Depth, DepthError, UnknownNameError, _tree

kinds = st.sampled_from(["piecewise", "linear"])
factors = st.integers(1, 5)
MIXED = (np.ndarray, np.floating)
"""What has a line between two; integers and booleans of a layer have none."""
seeds = st.integers(0, 1000)


def stack(seed, nodes):
    """A tree of stacked leaves, with leaves of no shape among them, and of kinds that have no line between two."""
    generator = np.random.default_rng(seed)
    return {
        "block": (generator.standard_normal((nodes, 2, 3)), generator.standard_normal(nodes).astype(np.float32)),
        "count": generator.integers(0, 9, nodes),
        "flag": generator.integers(0, 2, nodes) > 0,
        "name": np.tanh,
        "none": None,
    }


@st.composite
def depths(draw, kind=None, least=1):
    """A Depth of either kind, stacked or with one tree a layer."""
    kind = kind or draw(kinds)
    nodes = draw(st.integers(least, 5)) + (kind == "linear")
    depth = Depth(stack(draw(seeds), nodes), kind)
    return depth if draw(st.booleans()) else each(depth)


def each(depth):
    return Depth.each([depth.at(n) for n in range(depth.layers)], depth.kind)


def close(one, other):
    """The same containers and the same numbers up to rounding, in the same number types."""
    assert _tree.same_shape(one, other)
    for a, b in zip(_tree.leaves(one), _tree.leaves(other), strict=True):
        if hasattr(a, "shape"):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            rounding = 100 * np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0
            np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding)
        else:
            assert a is b
    return True


@given(depths(), factors)
def test_coarsen_undoes_refine(depth, factor):
    back = depth.refine(factor).coarsen(factor)
    assert (back.kind, back.layers, back.stacked) == (depth.kind, depth.layers, depth.stacked)
    assert close(back.tree, depth.tree)


@given(depths(), factors, st.data())
def test_refined_weights_are_the_same_function_of_depth(depth, factor, data):
    fine = depth.refine(factor)
    assert fine.intervals == factor * depth.intervals
    n = data.draw(st.integers(0, depth.intervals - 1))
    part = data.draw(st.integers(0, factor - 1))
    position = data.draw(st.floats(0, 1))
    assert close(fine.between(n * factor + part, position), depth.between(n, (part + position) / factor))


@given(depths(), factors, factors)
def test_refining_twice_is_refining_by_the_product(depth, one, other):
    assert close(depth.refine(one).refine(other).tree, depth.refine(one * other).tree)


@given(depths(), factors)
def test_stacked_leaves_and_one_tree_a_layer_say_the_same(depth, factor):
    other = each(depth)
    assert (other.layers, other.intervals, other.stacked) == (depth.layers, depth.intervals, False)
    one, fine = depth.refine(factor), other.refine(factor)
    assert all(close(one.at(n), fine.at(n)) for n in range(one.layers))
    one, coarse = one.coarsen(factor), fine.coarsen(factor)
    assert all(close(one.at(n), coarse.at(n)) for n in range(one.layers))


@given(depths(kind="linear"), st.data())
def test_linear_weights_are_continuous_and_reach_their_nodes(depth, data):
    n = data.draw(st.integers(0, depth.intervals - 1))
    assert close(depth.between(n, 0.0), depth.at(n))
    assert close(depth.between(n, 1.0), depth.at(n + 1))
    middle = _tree.map(lambda a, b: (a + b) / 2 if isinstance(a, MIXED) else a, depth.at(n), depth.at(n + 1))
    assert close(depth.between(n, 0.5), middle)


@given(depths(kind="piecewise"), st.floats(0, 1), st.data())
def test_piecewise_weights_hold_through_a_step(depth, position, data):
    n = data.draw(st.integers(0, depth.layers - 1))
    assert close(depth.between(n, position), depth.at(n))


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_place_tells_layer_and_part_of_every_step(intervals, parts, data):
    depth = Depth({"w": np.zeros((intervals, 2))})
    assert depth.place(data.draw(st.integers(0, 99)), 100) == (0, 0.0, 1.0)
    depth = Depth(depth.tree, "piecewise")
    n = data.draw(st.integers(0, intervals * parts - 1))
    layer, start, span = depth.place(n, intervals * parts)
    assert layer + start == pytest.approx(n / parts)
    assert 0 <= start < 1
    assert span == 1 / parts


@given(depths(), factors, st.data())
def test_a_step_reads_where_place_says_what_fitted_weights_say(depth, factor, data):
    steps = factor * depth.intervals
    n = data.draw(st.integers(0, steps - 1))
    position = data.draw(st.floats(0, 1))
    layer, start, span = depth.place(n, steps)
    assert close(depth.fit(steps).between(n, position), depth.between(layer, min(1.0, start + span * position)))


@given(seeds, factors, st.integers(0, 20), st.floats(0, 1))
def test_shared_weights_are_the_same_everywhere(seed, factor, n, position):
    depth = Depth(stack(seed, 3))
    assert depth.at(n) is depth.between(n, position) is depth.refine(factor).coarsen(factor).tree is depth.tree
    assert (depth.layers, depth.intervals, depth.factor(7)) == (1, None, 1)


def test_tied_layers_stay_tied_when_refined():
    one, other = {"w": np.ones(2)}, {"w": np.zeros(2)}
    fine = Depth.each([one, other, one]).refine(2)
    assert [layer is one for layer in fine.tree] == [True, True, False, False, True, True]


def test_the_kind_may_be_spelled_freely():
    assert Depth({"w": np.ones((2, 1))}, "Linear").kind == "linear"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Depth({"w": np.ones((2, 1))}, "linaer"), UnknownNameError, "take linear"),
        (lambda: Depth({"a": np.ones((2, 1)), "b": np.ones((3, 1))}, "piecewise"), DepthError, r"b: \(3, 1\)"),
        (lambda: Depth({"a": np.tanh}, "piecewise"), DepthError, "there are none"),
        (lambda: Depth({"a": np.ones(())}, "piecewise"), DepthError, "weight a is a scalar"),
        (lambda: Depth(np.ones((0, 2)), "piecewise"), DepthError, "0 layers.*at least 1"),
        (lambda: Depth(np.ones((1, 2)), "linear"), DepthError, "1 layers.*at least 2"),
        (lambda: Depth.each([]), DepthError, "empty list.*at least one"),
        (lambda: Depth.each([np.ones(2)], "linear"), DepthError, "at least 2"),
        (lambda: Depth.each([{"a": np.ones(2)}, {"b": np.ones(2)}]), DepthError, "different containers or keys"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").at(3), DepthError, "layer 3 of 3.*0 to 2"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").at(-1), DepthError, "layer -1"),
        (lambda: Depth(np.ones((3, 2)), "linear").between(2, 0.5), DepthError, "layer 3 of 3"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").refine(0), DepthError, "factor of 0.*at least 1"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").refine(1.5), DepthError, "factor of 1.5"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").coarsen(True), DepthError, "factor of True"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").coarsen(2), DepthError, "divisors of 3"),
        (lambda: Depth(np.ones((3, 2)), "linear").coarsen(3), DepthError, "2 intervals"),
        (lambda: Depth(np.ones((3, 2)), "linear").factor(3), DepthError, r"2 intervals \(3 nodes\).*multiple of 2"),
        (lambda: Depth(np.ones((3, 2)), "piecewise").fit(4), DepthError, "3 layers.*leave steps out to take 3"),
    ],
)
def test_what_makes_no_function_of_depth(make, error, match):
    with pytest.raises(error, match=match):
        make()
