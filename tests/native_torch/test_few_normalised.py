"""Which normalisations divide by the spread or the size of so few numbers that they count as jumps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from odenet_torch import solve
from odenet_torch.field.jumps import Watch, jumps

WIDTH = 12


def grouped(normalise, size):
    """A normalisation of groups of so many neighbours."""
    return lambda x: normalise(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)


def centred(x):
    return x - x.sum(-1, keepdim=True) / x.shape[-1]


def by_contraction(x):
    x = centred(x)
    return x * (torch.einsum("...i,...i->...", x, x) / x.shape[-1] + 1e-5)[..., None] ** -0.5


def size(x):
    return torch.linalg.norm(x, dim=-1, keepdim=True)


def by_hand(x):
    return x / (x[..., :1] ** 2 + x[..., 1:] ** 2 + 1e-8).sqrt()


def in_place(x):
    return x.clone().div_((x * x).sum(-1, keepdim=True).add_(1e-8).sqrt_())


def moments(x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) * ((x * x).mean(-1, keepdim=True) - mean * mean + 1e-5).rsqrt()


def phase(x):
    z = torch.complex(x[..., :6], x[..., 6:])
    return torch.view_as_real(z / z.abs()).flatten(-2)


FEW = {
    "GroupNorm of 2": nn.GroupNorm(6, WIDTH).double(),
    "layer norms of 4": grouped(lambda x: F.layer_norm(x, (4,)), 4),
    "a row of 2 in many": grouped(lambda x: F.layer_norm(x, (2,)), 2),
    "variance": grouped(lambda x: centred(x) * (x.var(-1, keepdim=True) + 1e-5).rsqrt(), 3),
    "deviation": grouped(lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5), 3),
    "both at once": grouped(lambda x: (x - (v := torch.var_mean(x, -1, keepdim=True))[1]) / v[0].sqrt(), 4),
    "moments": grouped(moments, 3),
    "size": grouped(lambda x: centred(x) / size(centred(x)), 4),
    "contraction": grouped(by_contraction, 3),
    "range": grouped(lambda x: (x - (low := x.amin(-1, keepdim=True))) / (x.amax(-1, keepdim=True) - low), 2),
    "logarithm": grouped(lambda x: centred(x) * torch.exp(-0.5 * torch.log(x.var(-1, keepdim=True))), 3),
    "batch": lambda x: (x - x.mean(0)) * (x.var(0) + 1e-5).rsqrt(),
    "normalize": grouped(lambda x: F.normalize(x, dim=-1), 2),
    "unit vectors of 3": grouped(lambda x: x / torch.where((n := size(x)) > 0, n, 1.0), 3),
    "norm": grouped(lambda x: x / x.norm(dim=-1, keepdim=True), 2),
    "clipped size": grouped(lambda x: x / size(x).clamp(min=1e-12), 2),
    "by hand": grouped(by_hand, 2),
    "in place": grouped(in_place, 2),
    "product": grouped(lambda x: x / torch.einsum("...i,...i->...", x, x).sqrt()[..., None], 2),
    "root mean square": grouped(lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt(), 2),
    "RMSNorm": grouped(lambda x: F.rms_norm(x, (3,)), 3),
    "largest": grouped(lambda x: x / x.abs().amax(-1, keepdim=True), 2),
    "attraction": grouped(lambda x: x * x.pow(2).sum(-1, keepdim=True) ** -1.5, 3),
    "hypotenuse": grouped(lambda x: x / torch.hypot(x[..., :1], x[..., 1:]), 2),
    "a pair in a row": lambda x: F.normalize(x[:, :2], dim=-1).repeat(1, 6),
    "phase": phase,
    "soft signs": lambda x: x / (x * x + 1e-6).sqrt(),
}
MANY = {
    "GroupNorm of 6": nn.GroupNorm(2, WIDTH).double(),
    "LayerNorm": nn.LayerNorm(WIDTH).double(),
    "a narrow layer": lambda x: F.layer_norm(x[:, :4], (4,)).repeat(1, 3),
    "softmax": grouped(lambda x: x.softmax(-1), 3),
    "log-softmax": grouped(lambda x: x.log_softmax(-1), 3),
    "mean": grouped(lambda x: x - x.mean(-1, keepdim=True), 3),
    "spread": grouped(lambda x: x + x.var(-1, keepdim=True), 3),
    "share": grouped(lambda x: x / (1 + x.square().sum(-1, keepdim=True)), 3),
    "unit vectors of 4": grouped(lambda x: F.normalize(x, dim=-1), 4),
    "unit rows": lambda x: x / size(x),
    "a triple in a row": lambda x: F.normalize(x[:, :3], dim=-1).repeat(1, 4),
    "sizes": grouped(lambda x: x * size(x), 2),
    "kernel": grouped(lambda x: x * torch.exp(-(x**2).sum(-1, keepdim=True)), 2),
    "long ones cut": grouped(lambda x: x / size(x).clamp_min(1.0), 2),
    "beside one": grouped(lambda x: x / (1 + (x**2).sum(-1, keepdim=True)).sqrt(), 2),
    "softsign": F.softsign,
    "mish": F.mish,
    "unit weights": lambda x: x @ F.normalize(torch.ones(WIDTH, 2).double()) @ torch.ones(2, WIDTH).double(),
    "running statistics": nn.BatchNorm1d(WIDTH).double().eval(),
}


@pytest.mark.parametrize("record", [False, True])
def test_which_normalisations_jump(record):
    def jumping(function, rows):
        y = torch.randn(rows, WIDTH, dtype=torch.float64, requires_grad=record)
        with Watch((y,)) as watch:
            function(y)
        return watch.jumps

    assert [name for name, of in FEW.items() if not jumping(of, 3)] == []
    assert [name for name, of in MANY.items() if jumping(of, 8)] == []
    assert not jumping(FEW["batch"], 8)


def test_a_field_is_seen_to_jump_where_it_is_solved():
    def unit(t, y):
        return F.normalize(y.unflatten(-1, (-1, 2)), dim=-1).flatten(-2)

    solve(unit, torch.randn(3, WIDTH, requires_grad=True), steps=2, gradient="checkpoint:bits=8").y1.sum().backward()
    assert jumps(unit)
