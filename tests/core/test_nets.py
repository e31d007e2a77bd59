"""Networks as specs: shapes, starts and checks of their weights."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import InputError, NetSpec, NonFiniteError, UnknownNameError

BLOCKS = pytest.mark.parametrize("block", ["conv", "bottleneck", "mlp", "linear"])
plain = st.builds(
    NetSpec,
    block=st.sampled_from(["conv", "mlp", "linear"]),
    depth=st.integers(1, 9),
    width=st.sampled_from([4, 8]),
    hidden=st.integers(1, 5),
    inputs=st.sampled_from([(1, 8, 8), (3, 32, 32), (2, 7, 9)]),
    classes=st.integers(1, 10),
    norm=st.sampled_from(["group", "none"]),
    along=st.sampled_from(["piecewise", "linear", "shared"]),
)
# linear blocks have no activation
plain = st.builds(
    lambda spec, activation: spec if spec.block == "linear" else dataclasses.replace(spec, activation=activation),
    plain,
    st.sampled_from(["relu", "tanh"]),
)
staged = st.builds(
    NetSpec,
    block=st.sampled_from(["conv", "bottleneck"]),
    depth=st.integers(1, 4),
    width=st.just(64),
    inputs=st.sampled_from([(1, 8, 8), (3, 64, 64)]),
    norm=st.sampled_from(["group", "none"]),
    along=st.sampled_from(["piecewise", "linear", "shared"]),
    before=st.lists(st.integers(1, 2), max_size=2).map(tuple),
    after=st.lists(st.integers(1, 2), max_size=1).map(tuple),
    activated=st.booleans(),
)
specs = st.one_of(plain, staged)
starts = st.sampled_from(["smooth", "independent", "zero"])
RESNET_101 = NetSpec(
    "bottleneck", 22, 1024, inputs=(3, 224, 224), classes=1000, before=(3, 4), after=(3,), horizon=22.0
)


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
    kind = "norm" if norm == "group" else "conv"
    last = {"conv": f"{kind}2", "bottleneck": f"{kind}3", "mlp": "linear2", "linear": ""}[block]
    expected = [f"block.{last}.weight", f"block.{last}.bias"] if last else ["block.weight"]
    assert silent >= set(expected)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize(("block", "last"), [("conv", 2), ("bottleneck", 3)])
def test_a_zero_start_silences_the_ordinary_blocks_too(block, last, norm):
    spec = NetSpec(block, 2, 64, norm=norm, before=(2, 1), after=(2,))
    weights = spec.init(0, "zero")
    stages = ("before0.0.", "before0.1.", "before1.0.", "transition.", "block.", "after0.0.", "after0.1.")
    assert {name.removesuffix("conv1.weight") for name in weights if name.endswith("conv1.weight")} == set(stages)
    layer = f"{'norm' if norm == 'group' else 'conv'}{last}"
    for name in stages:
        assert not weights[f"{name}{layer}.weight"].any()
        assert not weights[f"{name}{layer}.bias"].any()
        assert weights[f"{name}conv1.weight"].all()
    projections = [w for name, w in weights.items() if name.endswith("project.weight")]
    assert len(projections) == 3 + (block == "bottleneck")  # where the size changes, and behind a narrow stem
    assert all(w.all() for w in projections), "the state itself goes on"


def weights_of_resnet(blocks, classes):
    """How many a ResNet of bottleneck blocks has, written out from table 1 of He 2016: its normalisations have an
    affine map, its convolutions no bias."""
    total = 7 * 7 * 3 * 64 + 2 * 64
    channels = 64
    for inner, count in zip((64, 128, 256, 512), blocks, strict=True):
        outer = 4 * inner
        total += channels * outer + 2 * outer  # the projection past the first block
        for _ in range(count):
            total += channels * inner + 9 * inner * inner + inner * outer + 2 * (inner + inner + outer)
            channels = outer
    return total + channels * classes + classes


def test_resnet_101():
    """All of it but the bias of its stem is what torchvision's has, 44 549 160 numbers."""
    shapes = RESNET_101.shapes()
    assert weights_of_resnet((3, 4, 23, 3), 1000) == 44_549_160
    assert sum(map(math.prod, shapes.values())) == 44_549_160 + 64
    assert RESNET_101.state_shape == (1024, 14, 14)
    firsts = [name for name in shapes if name.endswith("conv1.weight")]
    assert sum(shapes[name][0] if name.startswith("block.") else 1 for name in firsts) == 3 + 4 + 23 + 3
    weighted = [name for name in shapes if re.search(r"(conv\d|stem|head)\.weight$", name)]
    assert sum(shapes[name][0] if name.startswith("block.") else 1 for name in weighted) == 101


def test_stages_double_the_channels_and_halve_the_image():
    spec = NetSpec(width=32, inputs=(3, 64, 64), before=(1, 1), after=(1, 1))
    widths = [shape[-4] for name, shape in spec.shapes().items() if name.endswith("conv2.weight")]
    assert widths == [8, 16, 32, 32, 64, 128]
    assert spec.state_shape == (32, 4, 4)  # of 64: the stem and what follows it leave 16
    assert spec.shapes()["head.weight"] == (10, 128)
    assert dataclasses.replace(spec, before=(), after=(1,), grid=5).shapes()["head.weight"] == (10, 64 * 5**2)


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
        ({"norm": "layer"}, UnknownNameError, "no norm called 'layer'.*group, batch, none"),
        ({"activation": "gelu"}, UnknownNameError, "relu, tanh"),
        ({"along": "piecwise"}, UnknownNameError, "take piecewise"),
        ({"depth": 0}, InputError, "depth=0.*at least 1"),
        ({"depth": 2.0}, InputError, "depth=2.0"),
        ({"width": True}, InputError, "width=True"),
        ({"hidden": -1}, InputError, "hidden=-1"),
        ({"classes": 0}, InputError, "classes=0"),
        ({"inputs": (1, 0, 8)}, InputError, r"inputs\[1\]=0"),
        ({"inputs": (64,)}, InputError, r"\(64,\) for a conv network.*\(channels, height, width\)"),
        ({"width": 6}, InputError, "width=6 with norm='group'.*multiples of 4.*norm='batch' or 'none'"),
        ({"horizon": float("inf")}, InputError, "horizon=inf"),
        ({"block": "bottleneck", "width": 24}, InputError, "width=24 .*bottleneck network.*multiples of 16"),
        ({"block": "bottleneck", "width": 18, "norm": "none"}, InputError, "width=18 .*multiples of 4"),
        ({"width": 20, "before": (1,)}, InputError, r"before=\(1,\).*multiples of 8"),
        ({"before": (3, 0)}, InputError, r"before\[1\]=0"),
        ({"after": (1.0,)}, InputError, r"after\[0\]=1\.0"),
        ({"grid": 0}, InputError, "grid=0"),
        ({"grid": 3}, InputError, "grid of 3 for final states of 8 x 8.*divisor"),
        ({"grid": 2, "after": (1, 1, 1)}, InputError, "grid of 2 for final states of 1 x 1"),
        ({"block": "mlp", "before": (1,)}, InputError, r"before=\(1,\) of a mlp network.*conv or bottleneck"),
        ({"block": "mlp", "after": (1,)}, InputError, r"after=\(1,\) of a mlp network"),
        ({"block": "mlp", "grid": 2}, InputError, "grid=2 of a mlp network"),
        ({"block": "linear", "activated": True}, InputError, "activated=True of a linear network"),
        ({"activated": "no"}, InputError, "activated='no'.*True or False"),
        ({"before": 3}, InputError, "before=3 of a network"),
        ({"inputs": (16, 8, 8), "classes": None, "after": (1,)}, InputError, r"after=\(1,\).*classes=None"),
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
