"""Networks as specs: shapes, starts and checks of their weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import InputError, NetSpec, NonFiniteError, UnknownNameError

BLOCKS = pytest.mark.parametrize("block", ["conv", "mlp", "linear"])
specs = st.builds(
    NetSpec,
    block=st.sampled_from(["conv", "mlp", "linear"]),
    depth=st.integers(1, 9),
    width=st.sampled_from([4, 8]),
    hidden=st.integers(1, 5),
    inputs=st.sampled_from([(1, 8, 8), (3, 32, 32), (2, 7, 9)]),
    classes=st.integers(1, 10),
    norm=st.sampled_from(["group", "none"]),
    activation=st.sampled_from(["relu", "tanh"]),
    along=st.sampled_from(["piecewise", "linear", "shared"]),
)
starts = st.sampled_from(["smooth", "independent", "zero"])


@given(specs, starts, st.integers(0, 3))
def test_a_start_fits_its_spec_and_follows_its_seed(spec, start, seed):
    weights = spec.init(seed, start)
    spec.check(weights)
    assert list(weights) == list(spec.shapes())
    assert all(array.dtype == np.float64 for array in weights.values())
    again, other = spec.init(seed, start), spec.init(seed + 1, start)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert any(not np.array_equal(weights[name], other[name]) for name in weights)


@given(specs)
def test_the_blocks_alone_have_an_axis_of_layers(spec):
    layers = {"piecewise": spec.depth, "linear": spec.depth + 1, "shared": 1}[spec.along]
    deeper = dataclasses.replace(spec, depth=spec.depth + 1).shapes()
    for name, shape in spec.shapes().items():
        inner = name.startswith("block.")
        assert not inner or shape[0] == spec.layers == layers
        grown = inner and spec.along != "shared"
        assert deeper[name] == ((shape[0] + 1, *shape[1:]) if grown else shape)


@BLOCKS
@pytest.mark.parametrize("along", ["piecewise", "linear"])
def test_a_smooth_start_has_a_limit(block, along):
    """The weight at depth s in [0, 1] is the same in networks of 8 and of 64 layers; neighbours differ by O(1/N)."""
    kind = {"block": block, "along": along}
    shallow, deep = NetSpec(depth=8, **kind).init(3), NetSpec(depth=64, **kind).init(3)
    for name, array in shallow.items():
        inner = name.startswith("block.")
        finer = deep[name][::8] if inner else deep[name]
        np.testing.assert_allclose(array, finer, rtol=1e-13, atol=1e-14)
        if inner and np.ptp(array):
            ratio = np.abs(np.diff(array, axis=0)).max() / np.abs(np.diff(deep[name], axis=0)).max()
            assert ratio == pytest.approx(8, rel=0.15)


@BLOCKS
def test_every_layer_of_a_start_has_the_same_spread(block):
    """Neither fades nor grows along depth, whether layers are drawn smoothly or each on its own."""
    spec = NetSpec(block=block, depth=5, width=64, hidden=64)
    for start in ("smooth", "independent"):
        for name, array in spec.init(0, start).items():
            if name.startswith("block.") and name.endswith("weight") and ".norm" not in name:
                spread = array.reshape(spec.layers, -1).std(axis=1)
                assert spread == pytest.approx(np.full(5, spread.mean()), rel=0.1)


@BLOCKS
@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_zero_start_silences_the_last_operation_of_each_block(block, norm):
    weights = NetSpec(block=block, norm=norm).init(0, "zero")
    silent = {name for name, array in weights.items() if name.startswith("block.") and not array.any()}
    last = {"conv": "norm2" if norm == "group" else "conv2", "mlp": "linear2", "linear": ""}[block]
    expected = [f"block.{last}.weight", f"block.{last}.bias"] if last else ["block.weight"]
    assert silent >= set(expected)


@pytest.mark.parametrize(
    ("inputs", "state"),
    [((3, 32, 32), (16, 10, 10)), ((1, 8, 8), (16, 8, 8)), ((1, 28, 28), (16, 8, 8)), ((1, 16, 15), (16, 16, 15))],
)
def test_the_stem_brings_images_to_the_size_of_the_paper(inputs, state):
    assert NetSpec(inputs=inputs).state_shape == state


def test_a_network_without_a_stem_is_its_blocks():
    spec = NetSpec(block="mlp", inputs=(4,), width=4, classes=None)
    assert all(name.startswith("block.") for name in spec.shapes())
    assert spec.state_shape == (4,)
    assert NetSpec(inputs=(8, 5, 6), width=8, classes=None).state_shape == (8, 5, 6)


def test_convolutions_have_a_bias_exactly_where_there_is_no_normalisation():
    assert not any("conv" in name and name.endswith("bias") for name in NetSpec(norm="group").shapes())
    assert not any("norm" in name for name in NetSpec(norm="none").shapes())
    assert "block.conv1.bias" in NetSpec(norm="none").shapes()


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"block": "conf"}, UnknownNameError, "take conv"),
        ({"norm": "batch"}, UnknownNameError, "no norm called 'batch'.*group, none"),
        ({"activation": "gelu"}, UnknownNameError, "relu, tanh"),
        ({"along": "piecwise"}, UnknownNameError, "take piecewise"),
        ({"depth": 0}, InputError, "depth=0.*at least 1"),
        ({"depth": 2.0}, InputError, "depth=2.0"),
        ({"width": True}, InputError, "width=True"),
        ({"hidden": -1}, InputError, "hidden=-1"),
        ({"classes": 0}, InputError, "classes=0"),
        ({"inputs": (1, 0, 8)}, InputError, r"inputs\[1\]=0"),
        ({"inputs": (64,)}, InputError, r"\(64,\) for a conv network.*\(channels, height, width\)"),
        ({"width": 6}, InputError, "width=6 with group normalisation.*multiples of 4.*norm='none'"),
        ({"horizon": float("inf")}, InputError, "horizon=inf"),
        ({"classes": None}, InputError, r"without stem.*inputs of shape \(16, 8, 8\)"),
    ],
)
def test_what_makes_no_network(given, error, match):
    with pytest.raises(error, match=match):
        NetSpec(**given)


def test_an_unknown_start_is_named():
    with pytest.raises(UnknownNameError, match="take smooth"):
        NetSpec().init(0, "smoth")


def test_weights_of_another_network_are_refused():
    spec = NetSpec(block="mlp", depth=2, width=4)
    good = spec.init()
    spec.check(good)
    with pytest.raises(InputError, match=r"without head\.bias, stem\.bias"):
        spec.check({name: array for name, array in good.items() if name not in ("head.bias", "stem.bias")})
    with pytest.raises(InputError, match=r"with tail\.weight"):
        spec.check({**good, "tail.weight": np.zeros(1)})
    with pytest.raises(InputError, match=r"head\.weight of shape \(4, 10\).*\(10, 4\)"):
        spec.check({**good, "head.weight": good["head.weight"].T})
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match=r"head\.bias holds NaN or infinity"):
            spec.check({**good, "head.bias": np.full(10, bad)})
