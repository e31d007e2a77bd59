"""What a converted model refuses when it is called: by the layer's name, with what to do; and it is as it was then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from odenet import ConversionError, GradientError, OdenetError, unconvert
from odenet_torch import convert

WIDTH, DEPTH = 4, 3
METHODS = ("checkpoint", "checkpoint:bits=16", "discrete-adjoint:iterations=30")
X = torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH)


class Cache:
    """What a layer may write to."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []


class Layer(nn.Module):
    mode = "plain"
    outside: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, x, cache=None):
        h = torch.tanh(self.inner(x))
        if Layer.mode == "raises":
            raise ValueError("the layer's own")
        if Layer.mode == "narrower":
            return (x + self.out(h))[:, :2]
        if Layer.mode == "other type":
            return (x + self.out(h)).double()
        if Layer.mode == "outside":
            h = h * Layer.outside
        if Layer.mode == "input in place":
            x.add_(1.0)
        return x + self.out(h)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, x, cache=None):
        for layer in self.layers:
            x = layer(x) if cache is None else layer(x, cache)
            if Layer.mode in ("narrower", "other type"):
                break
            if Layer.mode == "between":
                x.mul_(1.5)
        return x


CALLS = {
    "cache": (METHODS[1:], r"^Layer \(layers\.0\) called with a Cache, .*gradient="),
    "narrower": (METHODS[2:], r"^Layer \(layers\.0\) returns no state .*gradient='checkpoint'"),
    "other type": (METHODS[2:], r"^Layer \(layers\.0\) returns no state .*gradient='checkpoint'"),
    "integers": (METHODS[2:], r"^Layer \(layers\.0\) is called with a .*gradient='checkpoint'"),
    "outside": (METHODS[2:], r"^Layer \(layers\.0\) reads a tensor .*MulBackward0.*gradient='checkpoint'"),
    "input in place": (METHODS, r"^Layer changes its input in place"),
    "between": (METHODS[2:], r"^a state between .* Layer \(layers\.\d\), was modified .*gradient='checkpoint'"),
    "raises": (METHODS, "the layer's own"),
}


def loss(y):
    return (torch.linspace(-1, 1, y.numel()).view(y.shape) * y).sum()


def refused(model, case):
    Layer.mode = case
    Layer.outside = torch.full((WIDTH,), 0.5, requires_grad=True) * 2
    x = X.double().requires_grad_() if case == "integers" else X.clone()
    try:
        loss(model(x.to(torch.int64) if case == "integers" else x, Cache() if case == "cache" else None)).backward()
    finally:
        Layer.mode, Layer.outside = "plain", None


CASES = [(case, method) for case, (methods, _) in CALLS.items() for method in methods]


@pytest.mark.parametrize(("case", "method"), CASES)
def test_a_call_that_is_refused_leaves_the_model_as_it_was(case, method):
    torch.manual_seed(0)
    plain = Model()
    model = convert(copy.deepcopy(plain), example=X, gradient=method)
    loss(plain(X)).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    state = torch.get_rng_state()
    kind = ValueError if case == "raises" else OdenetError
    with pytest.raises(kind, match=CALLS[case][1]) as raised:
        refused(model, case)
    if case != "raises":
        assert isinstance(raised.value, GradientError if case == "between" else (ConversionError, OdenetError))
        assert raised.value.remedy
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        assert torch.equal(model(X), plain(X))
    for _ in range(2):
        model.zero_grad()
        loss(model(X)).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert (gradients - expected).norm() < (2e-3 if "bits" in method else 1e-5) * expected.norm()
    back = unconvert(model)
    assert all(type(layer) is Layer for layer in back.layers)
    assert not any(key.startswith(("odenet", "_odenet")) for layer in back.layers for key in vars(layer))
    assert back.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(back(X), plain(X))


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "checkpoint:bits=8", "auto"])
def test_nested_states_are_refused_in_words(gradient):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + torch.tanh(self.linear(x))

    rows = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    with pytest.raises(ConversionError):
        convert(nn.Sequential(Layer(), Layer()), example=rows, gradient=gradient)
