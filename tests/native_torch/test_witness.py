"""What a field reads where nobody can find it: what comes out when it runs again is held against what came out before.

The field reads a number where nothing of ours looks, and that changes between the forward and the backward pass: the
gradient is an error of ours or is said to be off. Where nothing changes, nothing is said.
"""

from __future__ import annotations

import math
import sys
import types
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from quick import quick
from torch import nn
from torch.nn import functional

import odenet
import odenet_torch
from odenet import GradientError, GradientWarning, PIDController
from odenet_torch.field import witness
from odenet_torch.gradients import known_ends

WIDTH, STEPS = 4, 10
UNKNOWN = types.ModuleType("unknown_to_odenet")
CHECKPOINTS = ("checkpoint", "checkpoint:segments=2", "checkpoint:states=3", "checkpoint:bits=8", "checkpoint:bits=16")
ADJOINTS = ("discrete-adjoint", "discrete-adjoint:iterations=2", "continuous-adjoint")
WAYS = [
    *((solver, gradient, "equal") for solver in ("euler", "rk4") for gradient in (*CHECKPOINTS, *ADJOINTS)),
    *((solver, "reversible", "equal") for solver in ("reversible-heun", "alf", "two-step-midpoint", "reversible:rk4")),
    *(("dopri5", gradient, "adaptive") for gradient in ("checkpoint", "discrete-adjoint", "continuous-adjoint")),
]
SOME = [way for way in WAYS if way[0] != "euler" or way[1] in ("checkpoint", "discrete-adjoint")]
KINDS = (torch.float64, torch.float32, torch.bfloat16)
ORDINARY = [(*way, kind) for way in WAYS for kind in KINDS]


class Cause:
    """A number that a field reads where it is not looked for, and what makes it another one."""

    def __init__(self, read, change):
        self.read, self.change = read, change


def patched(monkeypatch):
    one = torch.ones(())
    relu = functional.relu
    return Cause(lambda: functional.relu(one), lambda: monkeypatch.setattr(functional, "relu", lambda x: 2 * relu(x)))


def of_module(monkeypatch):
    monkeypatch.setitem(sys.modules, UNKNOWN.__name__, UNKNOWN)
    monkeypatch.setattr(UNKNOWN, "scale", 1.0, raising=False)
    return Cause(
        lambda: __import__("importlib").import_module("unknown_to_" + "odenet").scale,
        lambda: monkeypatch.setattr(UNKNOWN, "scale", 2.0),
    )


def gone(monkeypatch):
    held = [nn.Identity()]
    reference = weakref.ref(held[0])
    return Cause(lambda: 2.0 - (reference() is not None), held.clear)


def large(monkeypatch):
    numbers = torch.ones(1 << 17)
    array = numbers.numpy()
    return Cause(lambda: numbers[7777], lambda: array.__setitem__(7777, 2.0))


CAUSES = (patched, of_module, gone, large)
PAIRS = [(gradient, CAUSES[n % 4]) for n, gradient in enumerate((*CHECKPOINTS, *ADJOINTS))]


class Block(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.inner, self.outer, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), read

    def forward(self, y):
        return self.outer(torch.tanh(self.inner(y) * self.read()))


class OfTime(Block):
    def forward(self, t, y):
        return super().forward(y)


class Residual(Block):
    def forward(self, y):
        return y + super().forward(y)


class Drops(Residual):
    def forward(self, y):
        return functional.dropout(super().forward(y), 0.2)


def noticed(loss, cause):
    """Whether the backward pass after the change is refused, or said to be off."""
    cause.change()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        try:
            loss.backward()
        except GradientError as error:
            return "not what it was" in str(error)
        except GradientWarning as warning:
            return warning.certificate > 0.1
    return False


def solved(read, solver, gradient, steps, length=1.0):
    torch.manual_seed(0)
    w, y = (0.7 * torch.randn(WIDTH, WIDTH)).requires_grad_(), torch.randn(3, WIDTH).requires_grad_()
    choices: Any = {"steps": STEPS} if steps == "equal" else {"rtol": 1e-4, "atol": 1e-6}
    field = lambda t, y, w: torch.tanh(y @ w * read())  # noqa: E731
    return odenet.solve(field, y, w, t1=length, solver=solver, gradient=gradient, **choices).y1.square().sum()


@pytest.mark.parametrize("length", [1.0, 0.1])
@pytest.mark.parametrize(("solver", "gradient", "steps"), quick(WAYS, SOME))
def test_a_function_that_has_become_another_one_is_noticed(solver, gradient, steps, length, monkeypatch):
    cause = patched(monkeypatch)
    assert noticed(solved(cause.read, solver, gradient, steps, length), cause)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(("gradient", "cause"), PAIRS)
def test_blocks_that_have_become_others_are_noticed(gradient, passes, cause, monkeypatch):
    torch.manual_seed(0)
    cause = cause(monkeypatch)
    net = odenet_torch.ResidualStack([Block(cause.read) for _ in range(STEPS)], gradient=gradient)
    for _ in range(passes):
        loss = net(torch.randn(3, WIDTH)).square().sum()
    assert noticed(loss, cause)


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize(
    ("gradient", "kind", "cause"),
    [
        ("checkpoint", Residual, patched),
        ("checkpoint", Drops, large),
        ("checkpoint:bits=16", Residual, of_module),
        ("checkpoint:bits=16", Drops, gone),
    ],
)
def test_converted_layers_that_have_become_others_are_noticed(gradient, passes, kind, cause, monkeypatch):
    torch.manual_seed(0)
    cause, x = cause(monkeypatch), torch.randn(3, WIDTH)
    net = odenet_torch.convert(nn.Sequential(*(kind(cause.read) for _ in range(4))), example=x, gradient=gradient)
    for _ in range(passes):
        loss = net(x).square().sum()
    assert noticed(loss, cause)


@pytest.mark.parametrize("choices", [{"rtol": 1e-4, "atol": 1e-6}, {"method": "rk4", "options": {"step_size": 0.05}}])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_function_of_the_drop_in_that_has_become_another_one_is_noticed(passes, choices, monkeypatch):
    torch.manual_seed(0)
    cause = patched(monkeypatch)
    block, ts = OfTime(cause.read), torch.tensor([0.0, 0.5, 1.0])
    for _ in range(passes):
        y = torch.randn(3, WIDTH)
        loss = odenet_torch.odeint_adjoint(block, y, ts, **choices)[-1].square().sum()
    assert noticed(loss, cause)


@pytest.mark.parametrize("rows", [3, 500])
@pytest.mark.parametrize(("solver", "steps"), [("euler", 40), ("heun", 8), ("rk4", 8), ("rk4", 1)])
def test_a_field_that_has_changed_by_little_is_refused_by_a_continuous_adjoint(solver, steps, rows):
    """Its step back misses the known state by itself; a step forward from there does not."""
    torch.manual_seed(0)
    scale, w = np.ones(1 << 17), (0.4 * torch.randn(WIDTH, WIDTH)).requires_grad_()
    numbers, y = torch.from_numpy(scale), torch.randn(rows, WIDTH)
    solve = lambda: (  # noqa: E731
        odenet.solve(
            lambda t, y, w: torch.tanh(y @ w * numbers[7777]),
            y,
            w,
            solver=solver,
            gradient="continuous-adjoint",
            steps=steps,
        )
        .y1.square()
        .sum()
    )
    solve().backward()
    loss = solve()
    scale[7777] = 1.04
    with pytest.raises(GradientError, match="not what it was in the forward pass"):
        loss.backward()


@pytest.mark.parametrize("gradient", CHECKPOINTS)
def test_one_block_of_many_is_noticed(gradient, monkeypatch):
    """Of whole states all are compared; of rounded ones the first and the last."""
    torch.manual_seed(0)
    cause = patched(monkeypatch)
    place = 0 if "bits" in gradient else 4
    blocks = [Block(cause.read if n == place else lambda: 1.0) for n in range(STEPS)]
    net = odenet_torch.ResidualStack(blocks, gradient=gradient)
    for _ in range(2):
        loss = net(torch.randn(3, WIDTH)).square().sum()
    assert noticed(loss, cause)


def test_numbers_of_a_device_are_not_waited_for_and_said_afterwards(monkeypatch):
    monkeypatch.setattr(known_ends, "looks", lambda leaves: False)
    cause = patched(monkeypatch)
    loss = solved(cause.read, "euler", "checkpoint", "equal")
    cause.change()
    with pytest.warns(GradientWarning, match="not what it was in the forward pass"):
        loss.backward()


def test_a_second_derivative_is_noticed_too(monkeypatch):
    torch.manual_seed(0)
    cause = patched(monkeypatch)
    net = odenet_torch.ResidualStack([Block(cause.read) for _ in range(3)], gradient="checkpoint")
    for _ in range(3):
        x = torch.randn(3, WIDTH, requires_grad=True)
        loss = net(x).square().sum()
    cause.change()
    with pytest.raises(GradientError, match="not what it was"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize(("solver", "gradient", "steps", "kind"), quick(ORDINARY, ORDINARY[::4]))
def test_what_is_the_same_is_not_doubted(solver, gradient, steps, kind):
    """Steps that add little beside the state's rounding, in memory that is not contiguous, by dropout."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.3 if steps == "equal" else 0.0)).to(kind)
    x = (1e3 * torch.randn(WIDTH, 300, dtype=kind)).T.requires_grad_()  # more entries than are looked at
    choices: Any = {"steps": 3} if steps == "equal" else {"control": PIDController(1e-2, 1e-2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        y = odenet.solve(lambda t, y: block(y), x, t1=1e-3, solver=solver, gradient=gradient, **choices).y1
        y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3,), (2000,), (50, 40), (7, 300, 2), (1, 1 << 14), (4, 6, 33, 31)])
def test_a_sample_is_of_few_entries_of_all_rows_and_columns_that_fit(shape):
    leaf = torch.arange(math.prod(shape)).reshape(shape)
    (part,) = witness.sample((leaf,))
    assert 0 < part.numel() <= witness.ENTRIES
    assert part.numel() > min(leaf.numel(), witness.ENTRIES) // 16
    assert torch.equal(part, witness.sampled_as((part,), (leaf,))[0])


def test_a_state_may_be_missed_by_rounding_and_by_a_part_of_what_is_added():
    start, added = torch.ones(8), 1e-2 * torch.ones(8)
    end = start + added
    witness.require_reached((end + 0.003 * added,), (end,), (start,), "f")
    witness.require_reached((start + 1e-7,), (start,), (start,), "f")  # nothing was added: rounding
    witness.require_reached((end * torch.nan,), (end * torch.nan,), (start,), "f")  # is said elsewhere
    for wrong in (end + 0.01 * added, end * torch.nan):
        with pytest.raises(GradientError, match="f is not what it was in the forward pass"):
            witness.require_reached((wrong,), (end,), (start,), "f")


def spreads(y):
    """Of pairs of numbers, divided by how far these are apart."""
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    pairs = pairs - pairs.mean(-1, keepdim=True)
    return (pairs / (pairs.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(y.shape)


UNSTEADY = {
    "spreads": spreads,
    "rounded": lambda y: (3 * y).round() / 3,
    "sign": torch.sign,
    "compared": lambda y: torch.where(y > 0.2, y, 0.5 - y),
    "steep": lambda y: torch.tanh(30 * y),
}


class Unsteady(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.outer = (nn.Linear(12, 12, bias=False, dtype=torch.float64) for _ in range(2))
        self.kind = UNSTEADY[kind]

    def forward(self, y):
        return self.outer(torch.tanh(self.kind(self.inner(y))))


class UnsteadyLayer(Unsteady):
    def forward(self, y):
        return y + super().forward(y)


def without_doubt(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        net(x).square().sum().backward()


@pytest.mark.parametrize("kind", ["rounded", "sign"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_step_that_jumps_elsewhere_from_a_rounded_state_is_no_sign_of_another_field(solver, kind, monkeypatch):
    for seed in (0, 1, 6, 8):
        torch.manual_seed(seed)
        blocks, x = [Unsteady(kind) for _ in range(6)], torch.randn(8, 12, dtype=torch.float64)
        for turn in range(6):
            monkeypatch.setattr(known_ends, "turns", lambda of, turn=turn: turn % of)
            without_doubt(odenet_torch.ResidualStack(blocks, solver=solver, gradient="checkpoint:bits=8"), x)


def test_a_step_that_amplifies_the_rounding_of_a_state_is_no_sign_of_another_field(monkeypatch):
    rng = np.random.default_rng(3)
    weights, y0 = rng.uniform(-0.3, 0.3, (8, 2, 12, 12)), torch.from_numpy(rng.standard_normal((8, 12)))
    for turn in range(8):
        monkeypatch.setattr(known_ends, "turns", lambda of, turn=turn: turn % of)
        without_doubt(
            lambda x: (
                odenet.solve(
                    lambda t, y, w: torch.tanh(spreads(y @ w[0])) @ w[1],
                    x,
                    odenet.Depth(torch.from_numpy(weights).requires_grad_(), "piecewise"),
                    t1=8.0,
                    steps=8,
                    gradient="checkpoint:bits=8",
                ).y1
            ),
            y0,
        )


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_rounded_layer_that_jumps_elsewhere_is_not_taken_for_another_one(kind):
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(8, 12, dtype=torch.float64)
        layers = nn.Sequential(*(UnsteadyLayer(kind) for _ in range(6)))
        without_doubt(odenet_torch.convert(layers, example=x, gradient="checkpoint:bits=8"), x)


def rough(y):
    """Many times as sensitive as a state is exact; under another grad mode by kernels that add in another order."""
    return torch.sin(1e6 * (y.flip(-1) @ MIXED.flip(0) if torch.is_grad_enabled() else y @ MIXED))


MIXED = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) / 4
AMPLIFIED = [way for way in WAYS if "bits" not in way[1]]


def refusal(net, x):
    try:
        without_doubt(net, x)
    except odenet.OdenetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("solver", "gradient", "steps"), quick(AMPLIFIED, AMPLIFIED[::3]))
def test_a_field_that_amplifies_rounding_is_not_taken_for_another_one(solver, gradient, steps):
    choices: Any = {"steps": 4} if steps == "equal" else {"control": PIDController(0.3, 0.3, max_steps=40)}
    for seed in range(3):
        x = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed)).requires_grad_()

        def solved(x, of=choices):
            return odenet.solve(lambda t, y: rough(y), x, solver=solver, gradient=gradient, **of).y1

        said = refusal(solved, x)
        assert "not what it was" not in said
        assert "not a function" not in said


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "continuous-adjoint"])
@pytest.mark.parametrize("steps", [{"steps": 4, "solver": "rk4"}, {"rtol": 1e-3, "atol": 1e-4}])
def test_a_field_at_its_fixed_point_whose_kernels_depend_on_the_grad_mode_is_the_same_one(gradient, steps):
    """Without gradients a transformer in evaluation takes another way, which adds in another order."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True).eval()
    x = torch.randn(4, 5, 16)
    with torch.no_grad():
        layer.linear2.weight *= 0.1
        for _ in range(100):
            x = 0.5 * layer(x)
    solve = lambda x: odenet.solve(lambda t, y: 0.5 * layer(y) - y, x, gradient=gradient, **steps).y1  # noqa: E731
    assert refusal(solve, x.requires_grad_()) == ""


def test_a_field_in_16_bits_whose_kernels_depend_on_the_grad_mode_is_the_same_one():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True).eval().to(torch.bfloat16)
    x = torch.randn(4, 5, 16, dtype=torch.bfloat16, requires_grad=True)
    assert refusal(lambda x: odenet.solve(lambda t, y: layer(y), x, steps=3, gradient="checkpoint").y1, x) == ""


@pytest.mark.parametrize(
    ("solver", "gradient"),
    quick(
        [("euler", "checkpoint"), ("euler", "checkpoint:segments=2"), ("alf", "reversible")],
        [("euler", "checkpoint"), ("alf", "reversible")],
    ),
)
def test_a_field_of_compiled_steps_that_has_become_another_one_is_noticed(solver, gradient):
    torch.manual_seed(0)
    scale, w, y = (
        np.ones(1 << 18, np.float32),
        (0.5 * torch.randn(WIDTH, WIDTH)).requires_grad_(),
        torch.randn(3, WIDTH),
    )
    numbers = torch.from_numpy(scale)
    choices: Any = {"steps": 6, "solver": solver, "gradient": gradient, "compile": {"backend": "aot_eager"}}
    solve = lambda: odenet.solve(lambda t, y, w: torch.tanh(y @ w * numbers[7777]), y, w, **choices).y1  # noqa: E731
    assert refusal(lambda _: solve(), y) == ""
    assert noticed(solve().square().sum(), Cause(None, lambda: scale.__setitem__(7777, 2.0)))
