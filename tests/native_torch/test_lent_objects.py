"""Objects that a converted layer is called with and writes to, as caches of keys and values: their gradients are those
of plain autograd under checkpoint, the layer's further runs write to copies; what cannot be kept so is refused.
"""

from __future__ import annotations

import collections
import copy
from typing import Any

import pytest
import torch
from torch import nn

from odenet import ConversionError, GradientError
from odenet_torch import convert

WIDTH, DEPTH = 4, 3
X = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Cache:
    """Keys by layer, and how often each was asked."""

    def __init__(self):
        self.keys, self.calls = {}, collections.defaultdict(int)

    def update(self, index, key):
        self.calls[index] += 1
        before = self.keys.get(index)
        self.keys[index] = key if before is None else torch.cat([before, key])
        return self.keys[index]


class Shared(collections.UserDict):
    """What layers hand on by the side."""


class Preallocated:
    def __init__(self):
        self.keys = torch.zeros(DEPTH, 3, WIDTH)

    def update(self, index, key):
        self.keys[index] = key
        return self.keys[index]


class Drawing(Cache):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)


class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index, self.inner, self.out = index, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x, cache=None):
        key = torch.tanh(self.inner(x))
        if isinstance(cache, Shared):
            key = cache["first"] if self.index else key
            cache["first"] = key
        elif cache is not None:
            key = cache.update(self.index, key).view(-1, *x.shape).sum(0)
        return x + self.dropout(self.out(key))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, range(DEPTH)))

    def forward(self, x, cache=None):
        for layer in self.layers:
            x = layer(x, cache=cache)
        return x


def models(gradient):
    torch.manual_seed(0)
    plain = Model()
    return plain, convert(copy.deepcopy(plain), example=X, gradient=gradient)


def in_chunks(model, cache):
    """The second call attends to the keys of the first, and the loss reads them, too."""
    first = model(X, cache)
    loss = model(0.5 * X, cache).square().sum() + first.sum()
    kept = cache.keys if isinstance(cache, Cache) else cache
    return loss + sum(key.pow(3).sum() for key in kept.values())


@pytest.mark.parametrize("kind", [Cache, Shared])
@pytest.mark.parametrize("retained", [False, True])
def test_what_a_layer_writes_to_an_argument_has_its_gradient_under_checkpoint(kind, retained):
    gradients, caches = [], []
    for model in models("checkpoint"):
        cache = kind()
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(1)
            cache = kind()
            loss = in_chunks(model, cache)
            if retained:
                loss.backward(retain_graph=True)
            loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        caches.append(cache)
    torch.testing.assert_close(*gradients, rtol=0.0, atol=0.0)
    if kind is Cache:  # once each call, and not again in the backward pass
        assert caches[1].calls == caches[0].calls == dict.fromkeys(range(DEPTH), 2)
        assert [len(key) for key in caches[1].keys.values()] == [6] * DEPTH


@pytest.mark.parametrize("kind", [Preallocated, Drawing])
def test_an_object_that_cannot_be_kept_is_refused(kind):
    plain, model = models("checkpoint")
    with pytest.raises(ConversionError, match=rf"Layer \(layers.0\) called with a {kind.__name__}, .*'backprop'"):
        model(X, kind())
    converted = convert(copy.deepcopy(plain), example=X, gradient="backprop")
    found = []
    for each in (plain, converted):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(each(X, kind()).square().sum(), [*each.parameters()]))
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


def test_an_object_that_the_layer_holds_as_well_is_refused():
    _, model = models("checkpoint")
    layer: Any = model.layers[0]
    layer.memory = cache = Cache()
    with pytest.raises(ConversionError, match=r"Layer \(layers.0\) called with a Cache"):
        model(X, cache)


@pytest.mark.parametrize("gradient", ["checkpoint:bits=16", "discrete-adjoint:iterations=30"])
def test_methods_that_cut_the_graph_refuse_it_and_name_checkpoint(gradient):
    _, model = models(gradient)
    with pytest.raises(ConversionError, match=r"called with a Cache, .*gradient='checkpoint'"):
        model(X, Cache())


def test_a_tensor_in_a_cache_that_is_written_on_before_the_backward_pass_is_told():
    _, model = models("checkpoint")
    cache = Cache()
    first = model(X, cache).sum()
    earlier = cache.keys[1]  # which a further run of the second call reads
    loss = first + model(0.5 * X, cache).square().sum()
    with torch.no_grad():
        earlier.mul_(2.0)
    with pytest.raises(GradientError, match="was modified by an inplace operation"):
        loss.backward()
