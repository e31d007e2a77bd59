"""What f reads and leaves beside its arguments and its value: as by backprop, or refused by name."""

import argparse
import os
import threading
import types
import weakref

import pytest
import settings_of_the_user as settings
import torch
from settings_of_the_user import read
from torch import nn

import odenet
from odenet import GradientError, InputError
from odenet_torch import NeuralODE, ResidualStack, convert, odeint, odeint_adjoint

EXACT = ["checkpoint", "checkpoint:segments=2"]
CUT = ["checkpoint:states=2", "discrete-adjoint", "continuous-adjoint", "reversible"]
FEATURES: list[torch.Tensor] = []
SCALE = 0.5


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.float64)
        self.losses: list[torch.Tensor] = []

    def forward(self, x):
        return torch.tanh(self.inner(x))


class Attribute(Base):
    def forward(self, x):
        y = super().forward(x)
        self.loss = (y - x).square().mean()
        return y

    def kept(self):
        return self.loss


class Listed(Base):
    def forward(self, x):
        self.losses.append(x.square().mean())
        return super().forward(x)

    def kept(self):
        total = sum(self.losses)
        self.losses.clear()
        return total


class Hooked(Base):
    def __init__(self):
        super().__init__()
        self.inner.register_forward_hook(lambda module, args, out: FEATURES.append(out))

    def kept(self):
        total = sum(out.square().mean() for out in FEATURES)
        FEATURES.clear()
        return total


def passes(kind, gradient):
    torch.manual_seed(0)
    FEATURES.clear()
    solver = "reversible-heun" if gradient == "reversible" else "euler"
    model = ResidualStack([kind() for _ in range(3)], gradient=gradient, solver=solver, along="piecewise")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
    found = []
    for _ in range(2):
        model.zero_grad()
        y = model(x)
        (y.square().mean() + sum(block.kept() for block in model.blocks)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return found


KEPT = pytest.mark.parametrize("kind", [Attribute, Listed, Hooked])


@KEPT
@pytest.mark.parametrize("gradient", EXACT)
def test_a_loss_kept_beside_the_state_has_its_gradient_in_every_pass(kind, gradient):
    for one, other in zip(passes(kind, gradient), passes(kind, "backprop"), strict=True):
        assert torch.equal(one, other)


@KEPT
@pytest.mark.parametrize("gradient", CUT)
def test_where_no_graph_is_kept_its_gradient_is_refused(kind, gradient):
    with pytest.raises(GradientError, match=r"kept beside what it returned.*gradient='backprop'"):
        passes(kind, gradient)


def test_what_is_detached_is_no_such_loss_and_checks_leave_no_trace():
    class Logged(Base):
        def forward(self, x):
            y = super().forward(x)
            self.losses.append(y.detach())
            return y

    model = ResidualStack([Logged() for _ in range(2)], gradient="discrete-adjoint")
    y = model(torch.ones(1, 4, dtype=torch.float64))
    assert [len(block.losses) for block in model.blocks] == [1, 1]
    assert not any(loss.requires_grad for block in model.blocks for loss in block.losses)
    (y.sum() + model.blocks[0].losses[0].sum()).backward()


PARSED, BYTES, MANY = argparse.Namespace(scale=1.0), bytearray(b"\x01"), [1.0] * 5000
VIEW = types.MappingProxyType(settings.table)
OPTIONS = weakref.ref(settings.options)


def outer_scale():
    import settings_of_the_user as imported

    gain = float(os.environ.get("ODENET_SCALE", "1")) * settings.options.scale * imported.scale * read()
    return gain * settings.entries["scale"] * PARSED.scale * BYTES[0] * VIEW["scale"] * MANY[4500] * OPTIONS().deep[0]


OUTSIDE = [
    lambda x: os.environ.update(ODENET_SCALE=str(x)),
    lambda x: setattr(settings, "scale", x),
    lambda x: setattr(settings.options, "scale", x),
    lambda x: setattr(settings.options, "deep", [x]),
    lambda x: settings.entries.update(scale=x),
    lambda x: setattr(PARSED, "scale", x),
    lambda x: BYTES.__setitem__(0, int(x)),
    lambda x: settings.table.update(scale=x),
    lambda x: MANY.__setitem__(4500, x),
]


class Driven(nn.Module):
    factor = 1.0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3))
        self.graph, self.scale, self.options = torch.eye(3, dtype=torch.float64), 0.5, {"gain": 0.5, "list": [0.5]}

    def method(self):
        return 1.0

    def forward(self, t, y):
        gain = (
            outer_scale()
            * SCALE
            * self.method()
            * self.factor
            * self.scale
            * self.options["gain"]
            * self.options["list"][0]
        )
        return gain * torch.tanh(y @ self.weight) @ self.graph


def other_scale(field):
    global SCALE
    SCALE = 3.0


REPLACED = [
    lambda field: setattr(field, "graph", 3 * field.graph),
    lambda field: setattr(field, "scale", 3.0),
    lambda field: field.options.update(gain=3.0),
    lambda field: field.options["list"].__setitem__(0, 3.0),
    lambda field: setattr(Driven, "factor", 3.0),
    lambda field: setattr(Driven, "method", lambda self: 3.0),
    other_scale,
    *((lambda field, put=put: put(3.0)) for put in OUTSIDE),
]
METHOD = Driven.method
WRITTEN = [
    lambda field: field.graph.mul_(3),
    lambda field: field.weight.data.mul_(3),
    lambda field: setattr(field.weight, "data", 3 * field.weight.data),
]


def drop_in(field, y0):
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return odeint_adjoint(field, y0, times, rtol=1e-9, atol=1e-11, adjoint_params=(FIELD[0].weight,))[-1]


def solving(gradient, **choices):
    return lambda field, y0: odenet.solve(field, y0, gradient=gradient, **choices).y1


FIELD: list[Driven] = []
WAYS = {
    "drop-in": drop_in,
    **{g: solving(g, steps=4, solver="rk4") for g in ("checkpoint", "checkpoint:states=2", "discrete-adjoint")},
    **{f"adaptive {g}": solving(g, rtol=1e-8, atol=1e-10) for g in ("checkpoint", "continuous-adjoint")},
}


def gradient_after(way, change, closed):
    global SCALE
    for put in OUTSIDE:
        put(1.0)
    FIELD[:] = [field := Driven()]
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    try:
        loss = WAYS[way](lambda t, y: field(t, y) if closed else field, y0) if closed else WAYS[way](field, y0)
        loss = loss.square().sum()
        change(field)
        loss.backward()
    finally:
        SCALE, Driven.factor, Driven.method = 0.5, 1.0, METHOD
        os.environ.pop("ODENET_SCALE", None)
    return field.weight.grad


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_field_finds_again_what_it_read(way, closed):
    expected = gradient_after(way, lambda field: None, closed)
    for change in REPLACED:
        torch.testing.assert_close(gradient_after(way, change, closed), expected, rtol=1e-12, atol=1e-13)
    for change in WRITTEN:
        with pytest.raises(GradientError, match="modified by an inplace operation"):
            gradient_after(way, change, closed)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("functional", [False, True])
def test_the_drop_in_adjoint_has_the_gradient_of_a_tensor_that_func_reads(computed, functional):
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("condition", torch.ones((), dtype=torch.float64))

        def forward(self, t, y):
            return self.condition * y

    class Model(nn.Module):
        def __init__(self, way):
            super().__init__()
            self.func, self.way = Conditioned(), way

        def forward(self, y0):
            return self.way(self.func, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-9, atol=1e-11)[-1]

    found = []
    for way in (odeint, odeint_adjoint):
        leaf = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        condition, model, y0 = leaf * 1 if computed else leaf, Model(way), torch.ones(2, dtype=torch.float64)
        if functional:
            out = torch.func.functional_call(model, {"func.condition": condition}, (y0,))
        else:
            model.func.condition = condition
            out = model(y0)
        found.append(torch.autograd.grad(out.sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-7)


def test_modules_of_another_thread_are_not_the_field_s():
    net, other = nn.Linear(2, 2), nn.BatchNorm1d(2)
    called, go = threading.Event(), threading.Event()

    def run():
        go.wait(10)
        other(torch.randn(4, 2))
        called.set()

    def field(t, y):
        go.set()
        assert called.wait(10)
        return net(y)

    thread = threading.Thread(target=run)
    thread.start()
    y1 = odenet.solve(field, torch.ones(3, 2), steps=3, gradient="checkpoint").y1
    thread.join()
    other.eval()
    y1.sum().backward()
    assert net.weight.grad is not None


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale, self.slopes = nn.Linear(4, 4), 0.1, torch.linspace(0, 1, 4)
        self.options = {"gain": 1.0}

    def forward(self, x):
        return x + self.scale * self.options["gain"] * torch.tanh(self.inner(x)) * self.slopes


def layers():
    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(3)))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "scale", 0.7),
        lambda layer: layer.options.update(gain=3.0),
        lambda layer: setattr(layer, "slopes", torch.ones(4)),
    ],
)
def test_what_is_set_on_a_converted_layer_is_the_layer_s(change):
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    plain, converted = layers(), convert(layers(), example=x)
    torch.testing.assert_close(converted(x), plain(x))
    for model in (plain, converted):
        change(model[1])
    torch.testing.assert_close(converted(x), plain(x))


def test_a_run_of_another_solver_that_is_cut_short_is_refused():
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    converted = convert(layers(), example=x, solver="heun")
    assert converted[0](x).shape == x.shape
    with pytest.raises(InputError, match="the state between two layers of a run of 3 Layer is used"):
        converted[:2](x) + 0


def test_a_converted_model_keeps_nothing_of_the_example():
    class Noting(Layer):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(x)
            return x + torch.tanh(self.inner(x))

    x, model = torch.ones(2, 4), nn.Sequential(Noting(), Noting())
    convert(model, example=x)
    assert [len(layer.seen) for layer in model] == [0, 0]
    model(x)
    assert [len(layer.seen) for layer in model] == [1, 1]


def test_a_neural_ode_counts_its_evaluations_of_both_passes():
    class Counting(Driven):
        evaluations = 0

        def forward(self, t, y):
            self.evaluations += 1
            return super().forward(t, y)

    model = NeuralODE(field := Counting(), steps=3, gradient="discrete-adjoint")
    loss = model(torch.ones(2, 3, dtype=torch.float64)).sum()
    forth, field.evaluations = field.evaluations, 0
    loss.backward()
    assert (forth, field.evaluations) == (12, 24)
