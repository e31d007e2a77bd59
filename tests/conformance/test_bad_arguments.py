"""Every argument of every public function with values that make no sense: an error of ours in words, or it is used.

Over the signatures, so that a new argument is swept at once. What a caller's own function or module does with a strange
value is the caller's.
"""

from __future__ import annotations

import inspect
import itertools
import math
import traceback

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import odenet
import odenet_jax
import odenet_torch
from odenet import theory


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("an object that cannot be written out")


VALUES = {
    "None": None, "nothing": "", "a word": "typo", "bytes": b"x", "zero": 0, "minus one": -1, "huge": 10**400,
    "longer than Python writes": 10**5000, "NaN": math.nan, "infinity": math.inf, "True": True, "complex": 1j,
    "an empty list": [], "an empty tuple": (), "an empty dict": {}, "an object": object(), "a list of None": [None],
    "a list of words": ["typo"], "a list of NaN": [math.nan], "ragged": [[1.0], [1.0, 2.0]],
    "unspeakable": Unspeakable(), "a word of NumPy": np.str_("typo"), "an array": np.ones(2),
    "an empty array": np.zeros(0), "an array of objects": np.array([None]), "a tensor": torch.ones(2),
    "an array of JAX": jnp.ones(2),
}  # fmt: skip
SPEC = odenet.NetSpec("linear", width=4, inputs=(5,), classes=3, depth=2)
BATCH = np.linspace(-1, 1, 35).reshape(7, 5), np.arange(7) % 3
IMAGES = np.random.default_rng(0).normal(size=(60, 4, 4)), np.arange(60) % 3
TABLEAU = odenet.Tableau(((), (1.0,)), (0.5, 0.5), (0.0, 1.0), 2)


class Used(Exception):
    """All checks are behind us: what follows would be work."""


def decay(t, y, w):
    return -w * y


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, y):
        return y + torch.tanh(self.inner(y))


class ResidualOfJax(eqx.Module):
    inner: eqx.nn.Linear

    def __call__(self, y):
        return y + jnp.tanh(self.inner(y))


class Layers(eqx.Module):
    layers: list

    def __call__(self, y):
        for layer in self.layers:
            y = layer(y)
        return y


def stack(blocks=8):
    return odenet_torch.ResidualStack([nn.Linear(3, 3) for _ in range(blocks)])


def stack_of_jax():
    return odenet_jax.ResidualStack([eqx.nn.Linear(3, 3, key=key) for key in jax.random.split(jax.random.key(0), 2)])


def layers_of_jax():
    return Layers([ResidualOfJax(eqx.nn.Linear(3, 3, key=key)) for key in jax.random.split(jax.random.key(0), 2)])


def depth():
    return odenet.Depth({"w": np.linspace(0, 1, 16).reshape(8, 2)}, "piecewise")


def of(ones):
    """A good solve, of a framework's array."""
    return {"field": decay, "y0": ones, "weights": ones, "steps": 2}


GRADIENTS = {"gradients": ["backprop"]}
CALLS = {  # of each function, good arguments
    "compare": (odenet.compare, lambda: {"network": SPEC, "batch": BATCH, "backends": "torch"}),
    "train": (odenet.train, lambda: {"data": IMAGES, "net": "mlp", "quiet": True}),
    "plan": (odenet.plan, lambda: {"model": stack(2), "batch": torch.ones(2, 3), "repeats": 1, **GRADIENTS}),
    "audit": (odenet.audit, lambda: {"model": stack(2), "batch": torch.ones(2, 3), **GRADIENTS}),
    "check_gradients": (odenet.check_gradients, lambda: {"model": stack(2), "batch": torch.ones(2, 3), **GRADIENTS}),
    "check_gradients of JAX": (
        odenet.check_gradients,
        lambda: {"model": stack_of_jax(), "batch": jnp.ones(3), "backend": "jax", **GRADIENTS},
    ),
    "read_results": (odenet.read_results, lambda: {"folder": "none"}),
    "load_weights": (odenet.load_weights, lambda: {"path": "none.npz"}),
    "save_weights": (odenet.save_weights, lambda: {"path": "w.npz", "weights": {"w": np.ones(2)}}),
    "solver": (odenet.solver, lambda: {"name": "euler"}),
    "gradient": (odenet.gradient, lambda: {"name": "backprop"}),
    "backend": (odenet.backend, lambda: {"name": "torch"}),
    "unconvert": (odenet.unconvert, lambda: {"model": nn.Linear(1, 1)}),
    "solve": (odenet.solve, lambda: of(torch.ones(2))),
    "solve to a tolerance": (odenet.solve, lambda: of(torch.ones(2)) | {"steps": None, "rtol": 1e-2}),
    "solve of JAX": (odenet_jax.solve, lambda: of(jnp.ones(2))),
    "value_and_grad": (odenet.value_and_grad, lambda: of(torch.ones(2)) | {"loss": lambda sol: sol.y1.sum()}),
    "value_and_grad of JAX": (odenet.value_and_grad, lambda: of(jnp.ones(2)) | {"loss": lambda sol: sol.y1.sum()}),
    "Depth": (odenet.Depth, lambda: {"tree": np.ones((3, 2)), "kind": "piecewise"}),
    "Event": (odenet.Event, lambda: {"condition": lambda t, y: t}),
    "PIDController": (odenet.PIDController, dict),
    "NetSpec": (odenet.NetSpec, dict),
    "NetSpec.init": (SPEC.init, dict),
    "Solver": (odenet.Solver, lambda: {"name": "x", "tableau": TABLEAU, "summary": "a", "source": "b"}),
    "Tableau": (odenet.Tableau, lambda: {"a": TABLEAU.a, "b": TABLEAU.b, "c": TABLEAU.c, "order": 2}),
    **{
        name: (getattr(odenet, name), dict)
        for name in (
            "Auto", "BDIA", "Checkpoint", "ContinuousAdjoint", "Coupled", "DiscreteAdjoint", "Hamiltonian", "Leapfrog",
            "Momentum", "TwoStepMidpoint",
        )
    },
    "distance": (theory.distance, lambda: of(torch.ones(2))),
    "reconstruction": (theory.reconstruction, lambda: of(torch.ones(2))),
    "limits": (theory.limits, lambda: {"model": stack(), "x": torch.ones(2, 3)}),
    "limit": (theory.limit, lambda: {"terms": [1.0, 0.5, 0.25]}),
    "largest_change": (theory.largest_change, lambda: {"layers": [np.ones(2), np.zeros(2)]}),
    "reversed_depth": (theory.reversed_depth, lambda: {"depth": depth()}),
    "roughness": (theory.roughness, lambda: {"depth": depth()}),
    "smoothness": (theory.smoothness, lambda: {"depth": depth()}),
    "way_back": (theory.way_back, lambda: {"solver": odenet.solver("heun"), "method": odenet.DiscreteAdjoint()}),
    "NeuralODE": (odenet_torch.NeuralODE, lambda: {"field": nn.Linear(3, 3), "steps": 2}),
    "ResidualStack": (odenet_torch.ResidualStack, lambda: {"blocks": [nn.Linear(3, 3)]}),
    "OdeNet": (odenet_torch.OdeNet, lambda: {"spec": SPEC, "weights": SPEC.init(0)}),
    "convert": (
        odenet_torch.convert, lambda: {"model": nn.Sequential(Residual(), Residual()), "example": torch.ones(2, 3)},
    ),
    "unconvert of torch": (odenet_torch.unconvert, lambda: {"model": nn.Linear(1, 1)}),
    "odeint_dense": (
        odenet_torch.odeint_dense,
        lambda: {"func": lambda t, y: -y, "y0": torch.ones(2), "t0": 0.0, "t1": 1.0, "rtol": 1e-2, "atol": 1e-2},
    ),
    "NeuralODE of JAX": (odenet_jax.NeuralODE, lambda: {"field": lambda t, y: -y, "steps": 2}),
    "ResidualStack of JAX": (odenet_jax.ResidualStack, lambda: {"blocks": [jnp.tanh]}),
    "OdeNet of JAX": (odenet_jax.OdeNet, lambda: {"spec": SPEC, "weights": SPEC.init(0)}),
    "convert of JAX": (odenet_jax.convert, lambda: {"model": layers_of_jax(), "example": jnp.ones(3)}),
    "unconvert of JAX": (odenet_jax.unconvert, lambda: {"model": layers_of_jax()}),
    "certified_value_and_grad": (odenet_jax.certified_value_and_grad, lambda: {"loss": lambda model, probe: 0.0}),
}  # fmt: skip

SLOW = ("check_gradients of JAX", "convert of JAX", "solve to a tolerance", "value_and_grad of JAX")
LINEAR = ("torch/nn/modules/linear.py", "equinox/nn/_linear.py")  # a caller's layer


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """Jobs end where their checks do, in an empty folder."""

    def used(*_, **__):
        raise Used

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("odenet._jobs.compare.call.measure", used)
    monkeypatch.setattr("odenet._jobs.train.job.alone", used)
    return tmp_path


def of_caller(error):
    """Whether it is what a function or a module of the caller's (here: of this file) said of a strange value."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in frames if "site-packages" not in name]
    return (own[-1] == __file__ and len(own) > 2) or any(name.endswith(LINEAR) for name in frames)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CALLS]
)
def test_bad_arguments_are_refused_in_words_or_used(name, no_work):
    call, good = CALLS[name]
    wrong, refused = [], 0
    for argument, (kind, value) in itertools.product(inspect.signature(call).parameters, VALUES.items()):
        if argument == "compile" and kind in ("True", "an empty dict"):
            continue  # it compiles
        try:
            call(**good() | {argument: value})
        except Used:
            pass
        except odenet.OdenetError as error:
            refused += 1
            text = str(error)
            if not ("Allowed: " in text or "What to do: " in text) or len(text) > 2500:
                wrong.append(f"{argument}={kind}: {text[:200]}")
        except Exception as error:
            if not of_caller(error):
                wrong.append(f"{argument}={kind}: {type(error).__name__} {error}"[:200])
    assert not wrong, "\n".join(wrong)
    assert refused


def test_a_misspelt_argument_is_no_less_misspelt(no_work):
    for name, (call, good) in CALLS.items():
        with pytest.raises(TypeError, match="spelt"):
            call(**good(), mis_spelt=1)
        assert name


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "tanh", "net": "linear"},
        {"before": (1,)},
        {"limit_train": 1},
        {"limit_train": 61},
        {"batch": 61},
        {"device": "abacus"},
        {"optimizer": "torch.optim:AdamW,lr=-1"},
        {"optimizer": "torch.optim:Typo"},
        {"solver": "alf", "gradient": "continuous-adjoint"},
        {"backend": "scipy"},
        {"validation": 0.001},
        {"width": 0},
    ],
    ids=lambda options: ",".join(options),
)
def test_training_that_is_refused_leaves_no_folder(options, tmp_path):
    with pytest.raises(odenet.OdenetError):
        odenet.train(IMAGES, **{"net": "mlp", "out": tmp_path / "new", "quiet": True, **options})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["compare --block linear", "check --block linear", "train --net linear"])
@pytest.mark.parametrize("option", ["--activation relu", "--norm group"])
def test_an_option_that_the_network_does_not_read_is_not_ignored(command, option, capsys, no_work):
    from odenet._jobs.cli import main

    with pytest.raises(SystemExit) as end:
        main([*command.split(), *option.split()])
    assert end.value.code == 2
    assert "of a linear network, which has none" in "".join(capsys.readouterr())
    assert not list(no_work.iterdir())
