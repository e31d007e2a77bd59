"""Arguments that are of no use are refused by name, by every entry alike (kinds that `test_fuzz_entries` met)."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest
import torch
from torch.nn import UninitializedParameter

import odenet
import odenet_torch
from odenet import DtypeError, GridError, InputError, SolveError
from odenet_torch import odeint, odeint_event

SPARSE = torch.tensor([0.0, 1.0]).to_sparse()
META = torch.ones(2, device="meta")


def decay(t, y, *w):
    return -0.5 * y


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("blocks", [None, decay, 3])
def test_blocks_that_are_no_sequence(backend, blocks):
    with pytest.raises(InputError, match="a list of them"):
        importlib.import_module(f"odenet_{backend}").ResidualStack(blocks)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("verb", ["solve", "value_and_grad"])
@pytest.mark.parametrize("where", ["y0", "weights"])
def test_arrays_that_hold_no_numbers(backend, verb, where):
    leaves = {"y0": np.ones(2, np.float32), "weights": np.ones(2, np.float32), where: np.array([None])}
    arguments = (decay, leaves["y0"], leaves["weights"])
    call = odenet.solve if verb == "solve" else functools.partial(odenet.value_and_grad, lambda sol: sol.y1.sum())
    with pytest.raises(DtypeError, match="object"):
        call(*arguments, steps=2, backend=backend)


def test_arrays_with_negative_strides_have_their_gradient():
    y0 = np.arange(4.0).reshape(2, 2)[::-1]
    _, gradients, _ = odenet.value_and_grad(lambda sol: sol.y1.sum(), decay, y0, 1.0, steps=1, backend="torch")
    torch.testing.assert_close(gradients.y0, torch.full((2, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("ts", [SPARSE, META], ids=["sparse", "meta"])
@pytest.mark.parametrize("grid", [{"steps": 4}, {"rtol": 1e-3}], ids=str)
def test_times_that_cannot_be_listed(ts, grid):
    with pytest.raises(GridError, match="dense"):
        odenet.solve(decay, torch.ones(2), ts=ts, **grid)
    with pytest.raises(GridError, match="dense"):
        odeint(decay, torch.ones(2), ts, method="rk4" if "steps" in grid else None)


@pytest.mark.parametrize("ts", [[False, True], np.array([False, True])], ids=["list", "array"])
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("grid", [{"steps": 4}, {"rtol": 1e-3}], ids=str)
def test_truth_values_are_no_times(ts, backend, grid):
    with pytest.raises(GridError, match="no number"):
        odenet.solve(decay, np.ones(2), ts=ts, backend=backend, **grid)


def test_functions_and_arrays_of_jax_that_are_of_no_use():
    """They were errors of Python's and of JAX's own, most of them deep in a loop."""
    jax = importlib.import_module("jax")
    jnp, native, key = jax.numpy, importlib.import_module("odenet_jax"), jax.random.key(0)
    of = lambda **choices: lambda: odenet.solve(decay, jnp.ones(2), **choices)  # noqa: E731
    norms = {
        "takes": lambda: 1.0,
        r"float32\[2\]": lambda e: e,
        "returned None": lambda e: None,
        "bool": lambda e: e[0] > 0,
    }
    calls = {rf"norm.*{words}": of(control=odenet.PIDController(norm=norm)) for words, norm in norms.items()}
    calls |= {
        r"(?s)ts=.*dense": of(ts=key, rtol=1e-3),
        r"probe=": lambda: native.solve(decay, jnp.ones(2), steps=2, probe=key),
        r"field takes \(y\)": lambda: native.NeuralODE(lambda y: y, steps=2),
        "2 blocks .* hold no array": lambda: native.ResidualStack([jnp.tanh, jnp.tanh])(jnp.ones(2)),
        r"loss takes \(y, target\)": lambda: odenet.check_gradients(
            native.ResidualStack([importlib.import_module("equinox").nn.Linear(2, 2, key=key)]),
            np.ones(2, np.float32),
            loss=lambda y, target: y.sum(),
        ),
    }
    for words, call in calls.items():
        with pytest.raises(InputError, match=words):
            call()


def test_tolerances_and_gradients_without_values():
    with pytest.raises(InputError, match="dense"):
        odenet.solve(decay, torch.ones(2), rtol=SPARSE)
    with pytest.raises(InputError, match="meta"):
        odenet.value_and_grad(lambda sol: sol.y1.sum(), lambda t, y, w: w * y, META, 1.0, steps=2, backend="torch")


@pytest.mark.parametrize("rtol", [1e39, 1e308])
@pytest.mark.parametrize("gradient", ["backprop", "continuous-adjoint"])
def test_a_tolerance_beyond_the_state_s_numbers_allows_everything(rtol, gradient):
    sol = odenet.solve(decay, torch.ones(2), rtol=rtol, gradient=gradient)
    assert sol.stats.rejected == 0
    assert torch.isfinite(sol.y1).all()


@pytest.mark.parametrize("size", [0.0, 5e-324])
def test_an_event_that_never_occurs_while_nothing_moves(size):
    y0, never = torch.full((2,), size, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    with pytest.raises(SolveError, match="event_fn"):
        odeint_event(decay, y0, never, event_fn=lambda t, y: y[0] - 0.8, odeint_interface=odeint)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "value",
    [lambda: torch.ones(1).to_sparse(), lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])],
    ids=["sparse", "nested"],
)
@pytest.mark.parametrize("name", ["t0", "t1", "rtol", "atol"])
def test_options_without_one_value_are_refused(name, value):
    grid = {"steps": 4} if name.startswith("t") else {"rtol": 1e-3}
    with pytest.raises(InputError, match=name):
        odenet.solve(decay, torch.ones(2), **{**grid, name: value()})
    if name == "t0":
        with pytest.raises(InputError, match="t is"):
            odeint(decay, torch.ones(2), value())


def test_options_of_another_kind_are_refused():
    for name, value in {"rtol": torch.tensor(True), "atol": torch.tensor(1e-3j), "steps": torch.tensor(True)}.items():
        with pytest.raises(InputError, match=name):
            odenet.solve(decay, torch.ones(2), **{name: value})
    for verb, y0 in ((odenet.solve, np.ma.array([1.0, 2.0], mask=[False, True])), (odeint, UninitializedParameter())):
        more = {"steps": 4, "backend": "torch"} if verb is odenet.solve else {"t": torch.tensor([0.0, 1.0])}
        with pytest.raises(InputError, match=r"masked|lazy"):
            verb(decay, y0, **more)


@pytest.mark.parametrize("choice", ["event", "dense", "ts", "step_t", "jump_t"])
def test_what_rows_of_their_own_steps_cannot_have_is_named(choice):
    control = {choice: [0.5]} if choice.endswith("_t") else {}
    more = {"event": {"event": lambda t, y: y}, "dense": {"dense": True}, "ts": {"ts": "all"}}.get(choice, {})
    with pytest.raises(odenet.UnsupportedError, match=rf"^{choice}[^,]* with per_sample"):
        odenet.solve(
            decay, torch.ones(2, 1), control=odenet.PIDController(rtol=1e-3, per_sample=True, **control), **more
        )


NOT_DENSE = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)]),
    "MaskedTensor": lambda: torch.masked.masked_tensor(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)),
    "sparse": lambda: torch.ones(2, 3).to_sparse(),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of")  # torch's, of prototypes
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_that_are_no_array_of_numbers(kind):
    y, t, odd = torch.ones(2, 3), torch.tensor([0.0, 1.0]), NOT_DENSE[kind]()
    adaptive = {"t1": 1.0, "rtol": 1e-3, "atol": 1e-3}
    calls = [
        lambda: odenet.solve(decay, odd, t1=1.0, steps=2),
        lambda: odenet.solve(lambda t, y: odd, y, t1=1.0, steps=2),
        lambda: odenet.solve(lambda t, y: odd, y.clone().requires_grad_(), t1=1.0, steps=2, gradient="checkpoint"),
        lambda: odenet.solve(decay, y, **adaptive | {"rtol": odd}),
        lambda: odenet.solve(decay, y, event=lambda t, y: odd, **adaptive),
        lambda: odeint(decay, odd, t),
        lambda: odeint(decay, (odd,), t),
        lambda: odeint(lambda t, y: odd, y, t),
        lambda: odeint(lambda t, y: (odd,), (y,), t),
        lambda: odeint(decay, y, t, atol=odd),
    ]
    for i, call in enumerate(calls):
        with pytest.raises(odenet.OdenetError) as caught:
            call()
        assert kind in str(caught.value) or i in (0, 3, 4), i


class Unwritable:
    """An object that has an order, and no text."""

    def __repr__(self):
        raise ZeroDivisionError

    def __lt__(self, other):
        return id(self) < id(other)


class UnwritableName(str):
    """A name whose `repr` raises."""

    __repr__ = Unwritable.__repr__
    __slots__ = ()


def test_no_message_raises_because_of_what_it_tells_of():
    odd, key = Unwritable(), {Unwritable(): torch.ones(2, dtype=torch.int64)}
    y = torch.ones(2, requires_grad=True)
    blocks = [torch.nn.Linear(2, 2) for _ in range(2)]
    calls = [
        lambda: odenet.solve(decay, key, t1=1.0, steps=2),
        lambda: odenet.solve(decay, y, key, t1=1.0, steps=2, solver=UnwritableName("none")),
        lambda: odenet.solve(lambda t, y: {odd: y}, y, t1=1.0, steps=2),
        lambda: odenet.solve(lambda t, y: {odd: y}, y, t1=1.0, steps=2, gradient="checkpoint"),
        lambda: odeint(decay, y, torch.tensor([0.0, 1.0]), options={odd: 1}),
        lambda: odenet_torch.convert(torch.nn.Sequential(*blocks), UnwritableName("none"), example=y),
        lambda: odenet.solve(decay, {object(): y, "a": y, 3: y, 1j: y, 2j: y}, t1=1.0, steps=2),
    ]
    for call in calls:
        with pytest.raises(odenet.OdenetError):
            call()
    table = dict(key)  # a field that keeps results by such keys

    def keeps(t, y):
        table[next(iter(table))] = out = -y
        return out

    sol = odenet.solve(keeps, y, t1=1.0, steps=2, gradient="discrete-adjoint")
    with pytest.raises(odenet.OdenetError, match="cannot be written out"):
        (sol.y1.sum() + next(iter(table.values())).sum()).backward()
