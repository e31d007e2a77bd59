"""Bad input: each case ends in one error of the library's own tree that says what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import announcing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import odenet
from odenet import (
    BackendEntry,
    BackendUnavailableError,
    ContinuousAdjoint,
    Depth,
    DepthError,
    DeviceUnavailableError,
    DiscreteAdjoint,
    DtypeError,
    FileError,
    GradientError,
    GridError,
    InputError,
    NetSpec,
    NonFiniteError,
    OdenetError,
    StateError,
    UnknownNameError,
    UnsupportedError,
)
from odenet._gradients.record import Way


@dataclass(frozen=True)
class Framework:
    """What the cases need of a framework to make bad input with it."""

    name: str
    array: Callable[..., Any]
    cast: Callable[[Any, str], Any]

    def solve(self, field=lambda t, y, *w: -y, y0=None, weights=None, **choices):
        """A solve that is good but for what the case changes."""
        choices = {"steps": 4, **choices}
        return odenet.solve(field, self.array([1.0, 2.0]) if y0 is None else y0, weights, **choices)

    def gradient(self, loss=lambda s: s.y1.sum(), field=lambda t, y, w: w * y, y0=None, weights=None, **choices):
        """Value and gradient of a loss, good but for what the case changes."""
        y0 = self.array([1.0, 2.0]) if y0 is None else y0
        return odenet.value_and_grad(
            loss, field, y0, self.array([0.5, 1.0]) if weights is None else weights, **{"steps": 4, **choices}
        )

    def network(self, change=None, dtype="float32", device="cpu", solver="euler"):
        """A small network with changed weights."""
        weights = SPEC.init()
        weights.update(change or {})
        kinds = {"solver": odenet.solver(solver), "gradient": odenet.gradient("backprop")}
        return odenet.backend(self.name).build(SPEC, weights, **kinds, dtype=dtype, device=device)

    def evaluated(self, shape, targets):
        """Loss of a network on a batch of that shape."""
        return odenet.backend(self.name).evaluate(self.network(), np.zeros(shape), targets)


def _torch_cast(array: Any, kind: str) -> Any:
    return array.to(getattr(torch, kind))


TORCH = Framework("torch", lambda x: torch.tensor(x), _torch_cast)
JAX = Framework("jax", lambda x: jnp.asarray(x), lambda array, kind: array.astype(kind))
SPEC = NetSpec(block="mlp", depth=2, width=4, hidden=3)
Case = tuple[Callable[[Framework], Any], type[OdenetError], str]


def tree(fw):
    """A state of two leaves."""
    return {"q": fw.array([1.0]), "p": fw.array([0.5])}


def layers(fw, count, kind="piecewise"):
    """Weights of that many layers, as stacked leaves."""
    return Depth({"w": fw.array(np.ones((count, 2), np.float32))}, kind)


def command(*arguments):
    """The error that a command ends in."""
    from odenet._jobs.solve.command import command

    raise_from(CliRunner().invoke(command, list(arguments)))


def raise_from(result):
    """Usage errors are click's own; they are held to the same rule."""
    if isinstance(result.exception, OdenetError):
        raise result.exception
    assert result.exit_code == 2, result.output
    raise InputError(" ".join(result.stderr.split()))


NAMES: dict[str, Case] = {
    "unknown solver": (
        lambda fw: fw.solve(solver="eulr"),
        UnknownNameError,
        r"no solver called 'eulr'.*Allowed: euler, heun.*take euler",
    ),
    "solver of another type": (lambda fw: fw.solve(solver=4), InputError, r"solver was given as 4, a int.*euler"),
    "unknown gradient": (
        lambda fw: fw.solve(gradient="discret-adjoint"),
        UnknownNameError,
        r"'discret-adjoint'.*Allowed: backprop.*take discrete-adjoint",
    ),
    "gradient of another type": (lambda fw: fw.solve(gradient=None), InputError, r"gradient=None.*backprop"),
    "gradient as a class": (lambda fw: fw.solve(gradient=DiscreteAdjoint), InputError, r"DiscreteAdjoint.*a record"),
    "unknown option": (
        lambda fw: fw.solve(gradient="discrete-adjoint:itertions=2"),
        UnknownNameError,
        r"option of discrete-adjoint called 'itertions'.*take iterations",
    ),
    "option without a value": (
        lambda fw: fw.solve(gradient="discrete-adjoint:correct"),
        InputError,
        r"'correct' in gradient.*option=value.*iterations",
    ),
    "option that is no boolean": (
        lambda fw: fw.solve(gradient="discrete-adjoint:correct=perhaps"),
        InputError,
        r"'perhaps' is neither true nor false.*yes",
    ),
    "option that is no number": (
        lambda fw: fw.solve(gradient="continuous-adjoint:steps=many"),
        InputError,
        r"'many' is no whole number",
    ),
    "option that is too small": (
        lambda fw: fw.solve(gradient=DiscreteAdjoint(iterations=0)),
        InputError,
        r"iterations=0.*at least 1",
    ),
    "unknown predictor": (
        lambda fw: fw.solve(gradient="discrete-adjoint:predictor=reversed"),
        UnknownNameError,
        r"predictor called 'reversed'.*take reverse",
    ),
    "unknown solver of the adjoint": (
        lambda fw: fw.solve(gradient=ContinuousAdjoint(solver="rk44")),
        UnknownNameError,
        r"'rk44'.*take rk4",
    ),
    "an option twice": (
        lambda fw: fw.solve(gradient="discrete-adjoint:correct=no:correct=yes"),
        InputError,
        r"correct twice in gradient.*each option once",
    ),
    "no segments": (lambda fw: fw.solve(gradient="checkpoint:segments=0"), InputError, r"segments=0.*at least 1"),
    "a fraction of a state": (lambda fw: fw.solve(gradient="checkpoint:states=1.5"), InputError, r"'1\.5' is no whole"),
    "memory in words": (
        lambda fw: fw.solve(gradient="checkpoint:memory=lots"),
        InputError,
        r"'lots' is no amount of memory.*512K, 64M, 1\.5G",
    ),
    "no memory": (lambda fw: fw.solve(gradient="checkpoint:memory=0"), InputError, r"memory='0'.*at least 1"),
    "segments and states": (
        lambda fw: fw.solve(gradient="checkpoint:segments=2:states=2"),
        InputError,
        r"segments=2 and states=2 of checkpoint.*one of segments, states, memory and bits",
    ),
    "an order of extrapolation that is too high": (
        lambda fw: fw.solve(gradient="discrete-adjoint:predictor=extrapolate:order=5"),
        InputError,
        r"order=5.*1 to 4",
    ),
    "no anchors": (lambda fw: fw.solve(gradient="discrete-adjoint:anchors=0"), InputError, r"anchors=0.*at least 1"),
    "a tolerance in words": (
        lambda fw: fw.solve(gradient="discrete-adjoint:tolerance=tight"),
        InputError,
        r"'tight' is no number.*1e-6",
    ),
    "a tolerance above one": (
        lambda fw: fw.solve(gradient="discrete-adjoint:tolerance=2"),
        InputError,
        r"tolerance=2\.0.*between 0 and 1",
    ),
    "a tolerance of NaN": (
        lambda fw: fw.solve(gradient=DiscreteAdjoint(tolerance=float("nan"))),
        InputError,
        r"tolerance=nan.*between 0 and 1",
    ),
    "a limit of nothing": (
        lambda fw: fw.solve(gradient="discrete-adjoint:limit=0"),
        InputError,
        r"limit=0.*at least 1",
    ),
    "a backward solve by a reversible solver": (
        lambda fw: fw.solve(gradient="continuous-adjoint:solver=alf"),
        InputError,
        r"solver='alf' of the continuous adjoint.*Runge-Kutta",
    ),
    "an option of a method without options": (
        lambda fw: fw.solve(solver="alf", gradient="reversible:steps=2"),
        UnknownNameError,
        r"no option of reversible called 'steps'",
    ),
    "an unknown solver made reversible": (
        lambda fw: fw.solve(solver="reversible:rk5"),
        UnknownNameError,
        r"to be made reversible called 'rk5'.*take rk4",
    ),
    "a reversible solver made reversible": (
        lambda fw: fw.solve(solver="reversible:alf"),
        UnknownNameError,
        r"to be made reversible called 'alf'.*Allowed: euler",
    ),
    "options of another solver": (
        lambda fw: fw.solve(solver="alf:heun"),
        InputError,
        r"solver 'alf:heun'.*reversible:SOLVER:coupling=NUMBER",
    ),
    "a coupling of nothing": (
        lambda fw: fw.solve(solver="reversible:heun:coupling=0"),
        InputError,
        r"coupling=0\.0 of a reversible solver.*\(0, 1\]",
    ),
    "a coupling in words": (
        lambda fw: fw.solve(solver="reversible:heun:coupling=loose"),
        InputError,
        r"option 'coupling=loose'.*coupling=0\.99",
    ),
    "a reversible gradient of a solver that is not": (
        lambda fw: fw.solve(solver="euler", gradient="reversible"),
        UnsupportedError,
        r"'reversible' with solver 'euler'.*backprop, checkpoint.*take solver=reversible:euler",
    ),
    "an adjoint of a reversible solver": (
        lambda fw: fw.solve(solver="alf", gradient="discrete-adjoint"),
        UnsupportedError,
        r"'discrete-adjoint' with solver 'alf'.*backprop, checkpoint, reversible with this.*gradient='reversible'",
    ),
    "a continuous adjoint of a reversible solver": (
        lambda fw: fw.solve(solver="reversible-heun", gradient="adjoint"),
        UnsupportedError,
        r"'continuous-adjoint' with solver 'reversible-heun'.*gradient='reversible'",
    ),
    "a checkpoint of a reversible solver": (
        lambda fw: fw.solve(solver="reversible:rk4", gradient="checkpoint:states=2"),
        UnsupportedError,
        r"'checkpoint:states=2' with solver 'reversible:rk4'.*gradient='reversible'.*segments=K",
    ),
    "unknown backend": (
        lambda fw: fw.solve(backend=fw.name + "x"),
        UnknownNameError,
        r"backend called '(torch|jax)x'.*Allowed:.*take",
    ),
    "unknown kind of depth": (
        lambda fw: fw.solve(weights=layers(fw, 4, "peicewise")),
        UnknownNameError,
        r"'peicewise'.*take piecewise",
    ),
}

STATES: dict[str, Case] = {
    "y0 is text": (lambda fw: fw.solve(y0="1.0", backend=fw.name), StateError, r"y0 \(leaf\) is a str.*arrays or num"),
    "y0 is an object": (lambda fw: fw.solve(y0=object(), backend=fw.name), StateError, r"is a object.*arrays"),
    "y0 is None": (lambda fw: fw.solve(y0=(), weights=fw.array([1.0])), StateError, r"empty tree.*at least one"),
    "y0 has a wrong leaf": (
        lambda fw: fw.solve(y0={"q": fw.array([1.0]), "p": b"x"}),
        StateError,
        r"y0 p is a bytes.*arrays or numbers",
    ),
    "y0 holds no number": (lambda fw: fw.solve(y0=fw.array(np.zeros((2, 0)))), StateError, r"shape \(2, 0\).*at least"),
    "y0 of integers": (lambda fw: fw.solve(y0=fw.array([1, 2])), DtypeError, r"is int(32|64).*float32.*convert"),
    "y0 of booleans": (lambda fw: fw.solve(y0=fw.array([True])), DtypeError, r"is bool.*float32.*convert"),
    "y0 is True": (lambda fw: fw.solve(y0=True, backend=fw.name), DtypeError, r"is bool.*float32"),
    "NumPy y0 of texts": (
        lambda fw: fw.solve(y0=np.array(["a"]), backend=fw.name),
        DtypeError,
        r"cannot become a tensor.*NumPy arrays|is an array of <U1.*arrays of numbers",
    ),
    "NumPy y0 with NaN": (
        lambda fw: fw.solve(y0=np.array([1, np.nan], np.float32), backend=fw.name),
        NonFiniteError,
        r"y0 \(leaf\) holds NaN or infinity.*finite",
    ),
    "number y0 that is infinite": (
        lambda fw: fw.solve(y0={"a": float("inf")}, backend=fw.name),
        NonFiniteError,
        r"y0 a holds NaN or infinity.*finite",
    ),
    "arrays of no framework": (lambda fw: fw.solve(y0=np.ones(2)), InputError, r"numpy\.ndarray.*none.*backend="),
    "arrays of two frameworks": (
        lambda fw: fw.solve(y0=(torch.ones(2), jnp.ones(2))),
        InputError,
        r"belong to (torch, jax|jax, torch).*one framework",
    ),
    "arrays of the other framework": (
        lambda fw: fw.solve(y0=(JAX if fw is TORCH else TORCH).array([1.0, 2.0]), backend=fw.name),
        InputError,
        r"y0 \(leaf\) is an array of (jax|torch), and the backend is (jax|torch).*convert it, or take backend=",
    ),
    "weights of the other framework": (
        lambda fw: fw.solve(lambda t, y, w: y * w, weights=(JAX if fw is TORCH else TORCH).array([1.0, 2.0])),
        InputError,
        r"belong to (torch, jax|jax, torch).*one framework",
    ),
    "weights of the other framework, with a name": (
        lambda fw: fw.solve(
            lambda t, y, w: y, weights={"a": [(JAX if fw is TORCH else TORCH).array([1.0])]}, backend=fw.name
        ),
        InputError,
        r"weights a\[0\] is an array of (jax|torch), and the backend is (jax|torch).*NumPy",
    ),
}

FIELDS: dict[str, Case] = {
    "field is no function": (lambda fw: fw.solve(field=3), InputError, r"field is a int.*callable field\(t, y, w\)"),
    "field without w although there are weights": (
        lambda fw: fw.solve(lambda t, y: y, weights=fw.array([1.0, 1.0])),
        InputError,
        r"field takes \(t, y\).*field\(t, y, w\), since there are weights",
    ),
    "field with w although there are no weights": (
        lambda fw: fw.solve(lambda t, y, w: y),
        InputError,
        r"field takes \(t, y, w\).*'w'.*field\(t, y\), since there are no weights",
    ),
    "field returns another shape": (
        lambda fw: fw.solve(lambda t, y: y[:1]),
        StateError,
        r"returned shapes \[\(1,\)\] for a state of shapes \[\(2,\)\].*own shape",
    ),
    "field returns a scalar array": (
        lambda fw: fw.solve(lambda t, y: y.sum()),
        StateError,
        r"returned shapes \[\(\)\] for a state of shapes \[\(2,\)\]",
    ),
    "field returns nothing": (lambda fw: fw.solve(lambda t, y: None), StateError, r"returned (a NoneType|None).*like"),
    "field returns a number": (lambda fw: fw.solve(lambda t, y: 0.0), StateError, r"returned a float.*zeros_like"),
    "field returns a list": (lambda fw: fw.solve(lambda t, y: [1.0, 2.0]), StateError, r"a list of 2.*a tree like"),
    "field returns another tree": (
        lambda fw: fw.solve(lambda t, y: (y["q"], y["p"]), tree(fw)),
        StateError,
        r"a tuple of 2 for a state that is a dict of (p, q|q, p)",
    ),
    "field returns other keys": (
        lambda fw: fw.solve(lambda t, y: {"q": y["p"], "r": y["q"]}, tree(fw)),
        StateError,
        r"a dict of q, r for a state that is a dict of (p, q|q, p)",
    ),
    "field returns numbers in a tree": (
        lambda fw: fw.solve(lambda t, y: {"q": y["p"], "p": 0.0}, tree(fw)),
        StateError,
        r"returned a float.*zeros_like",
    ),
    "field returns complex numbers for a real state": (
        lambda fw: fw.solve(lambda t, y: y * 1j),
        DtypeError,
        r"complex64 for a state of (torch\.)?float32.*promoted in silence.*float32",
    ),
    "float64 weights with a float32 state": (
        lambda fw: odenet.backend(fw.name) and _wide(fw),
        DtypeError,
        r"float64 for a state of (torch\.)?float32.*promoted in silence.*(\.to|\.astype)\(y0\.dtype\)",
    ),
}


def _wide(fw):
    with odenet.backend(fw.name).prepare("float64", "cpu"):
        y0, weights = fw.cast(fw.array([1.0, 2.0]), "float32"), fw.cast(fw.array([1.0, 2.0]), "float64")
        return fw.solve(lambda t, y, w: w * y, y0, weights)


GRIDS: dict[str, Case] = {
    "no steps": (lambda fw: fw.solve(steps=0), GridError, r"steps=0.*at least 1"),
    "negative steps": (lambda fw: fw.solve(steps=-3), GridError, r"steps=-3.*t1 < t0"),
    "a float number of steps": (lambda fw: fw.solve(steps=2.0), GridError, r"steps=2\.0 is a float.*whole number"),
    "steps that are a boolean": (lambda fw: fw.solve(steps=True), GridError, r"steps=True is a bool"),
    "steps left out": (lambda fw: fw.solve(steps=None), InputError, r"steps was left out.*steps=N.*Depth"),
    "steps left out with shared weights": (
        lambda fw: fw.solve(weights=fw.array([1.0, 1.0]), steps=None),
        InputError,
        r"steps was left out.*steps=N",
    ),
    "t0 is NaN": (lambda fw: fw.solve(t0=float("nan")), GridError, r"t0=nan.*finite"),
    "t1 is infinite": (lambda fw: fw.solve(t1=float("inf")), GridError, r"t1=inf.*finite"),
    "t1 is text": (lambda fw: fw.solve(t1="1"), GridError, r"t1='1' is no number.*finite number"),
    "t1 is an array": (lambda fw: fw.solve(t1=fw.array([1.0, 2.0])), GridError, r"t1=.*is no number"),
    "ts is empty": (lambda fw: fw.solve(ts=[]), GridError, r"ts is empty.*leave ts out"),
    "ts beyond t1": (lambda fw: fw.solve(ts=[0.5, 1.25]), GridError, r"ts holds 1\.25, outside \[0\.0, 1\.0\]"),
    "ts off the grid": (lambda fw: fw.solve(ts=fw.array([0.3])), GridError, r"ts holds 0\.3.*4 steps.*0\.25"),
    "ts the wrong way": (lambda fw: fw.solve(ts=[0.5, 0.25]), GridError, r"does not run from t0=0\.0 to t1=1\.0"),
    "ts is another word": (lambda fw: fw.solve(ts="every"), GridError, r"ts='every'.*'all'"),
    "ts is a table": (lambda fw: fw.solve(ts=fw.array([[0.5, 1.0]])), GridError, r"ts=.*is no (number|list)"),
    "ts is NaN": (lambda fw: fw.solve(ts=[float("nan")]), GridError, r"ts=nan.*finite"),
}

DEPTHS: dict[str, Case] = {
    "leaves of different layers": (
        lambda fw: Depth({"a": fw.array([[1.0]] * 3), "b": fw.array([[1.0]] * 4)}, "piecewise"),
        DepthError,
        r"a: \(3, 1\), b: \(4, 1\).*same leading axis",
    ),
    "a scalar leaf": (
        lambda fw: Depth({"a": fw.array([[1.0]]), "b": fw.array(1.0)}, "piecewise"),
        DepthError,
        r"weight b is a scalar.*leading layer axis",
    ),
    "one linear node": (lambda fw: layers(fw, 1, "linear"), DepthError, r"linear weights with 1 layers.*at least 2"),
    "no layer": (lambda fw: Depth.each([]), DepthError, r"empty list.*at least one"),
    "layers of different keys": (
        lambda fw: Depth.each([{"a": fw.array([1.0])}, {"b": fw.array([1.0])}]),
        DepthError,
        r"different containers or keys.*one tree",
    ),
    "interpolated layers of different shapes": (
        lambda fw: fw.solve(
            lambda t, y, w: w["a"].sum() * y,
            weights=Depth.each([{"a": fw.array([1.0])}, {"a": fw.array([1.0, 2.0])}], "linear"),
        ),
        DepthError,
        r"weight a is an array of shape \(1,\) in layer 0 and an array of shape \(2,\) in layer 1.*same shape",
    ),
    "interpolated layers of different numbers": (
        lambda fw: fw.solve(lambda t, y, w: w["a"] * y, weights=Depth.each([{"a": 1.0}, {"a": 2.0}], "linear")),
        DepthError,
        r"weight a is 1\.0 in layer 0 and 2\.0 in layer 1.*make numbers that change with depth arrays",
    ),
    "steps that are no multiple of the layers": (
        lambda fw: fw.solve(lambda t, y, w: w["w"] * y, weights=layers(fw, 3)),
        DepthError,
        r"steps=4 with piecewise weights of 3 layers.*multiple of 3.*leave steps out",
    ),
    "steps that are no multiple of the intervals": (
        lambda fw: fw.solve(lambda t, y, w: w["w"] * y, weights=layers(fw, 4, "linear")),
        DepthError,
        r"3 intervals \(4 nodes\).*multiple of 3",
    ),
    "adjoint steps that miss a layer": (
        lambda fw: fw.solve(lambda t, y, w: w["w"] * y, weights=layers(fw, 4), gradient=ContinuousAdjoint(steps=6)),
        DepthError,
        r"steps=6.*4 layers.*multiple of 4",
    ),
    "an interpolated adjoint of other steps": (
        lambda fw: fw.solve(gradient="continuous-adjoint:interpolate=yes:steps=8"),
        GridError,
        r"interpolated continuous adjoint of 8 steps for a solve of 4.*leave out steps=",
    ),
    "adjoint steps that miss a kept time": (
        lambda fw: fw.solve(ts="all", gradient=ContinuousAdjoint(steps=6)),
        GridError,
        r"continuous adjoint of 6 steps jumps over a time in ts.*multiple of 4",
    ),
}

GRADIENTS: dict[str, Case] = {
    "a loss of several numbers": (
        lambda fw: fw.gradient(lambda s: s.y1),
        InputError,
        r"the loss returned .*a real scalar (tensor|array)",
    ),
    "a loss that is no array": (lambda fw: fw.gradient(lambda s: 1.0), InputError, r"the loss returned 1\.0.*scalar"),
    "a complex loss": (
        lambda fw: fw.gradient(lambda s: s.y1.sum() * 1j),
        InputError,
        r"the loss returned .*a real scalar",
    ),
    "a loss of nothing": (lambda fw: fw.gradient(lambda s: None), InputError, r"the loss returned None.*real scalar"),
    "a loss that is no function": (lambda fw: fw.gradient(loss="sum"), InputError, r"loss is a str.*loss\(solution\)"),
    "memory for not even one state": (
        lambda fw: fw.gradient(gradient="checkpoint:memory=20"),
        InputError,
        r"memory=20 bytes of checkpoint[,;].*one state takes 8.*at least \d+ bytes.*discrete-adjoint",
    ),
    "a tolerance that is not reached": (
        lambda fw: fw.gradient(gradient="discrete-adjoint:tolerance=1e-6:limit=6", t1=400.0),
        GradientError,
        r"step \d cannot be undone to tolerance=1e-06: after 6 evaluations.*h Lip\(f\) < 1.*checkpoint",
    ),
    "gradients of an integer state": (
        lambda fw: fw.gradient(y0=fw.array([1, 2])),
        DtypeError,
        r"is int(32|64).*float32",
    ),
}

NETWORKS: dict[str, Case] = {
    "weights that miss one": (
        lambda fw: odenet.backend(fw.name).build(
            SPEC, {}, solver=odenet.solver("euler"), gradient=odenet.gradient("backprop")
        ),
        InputError,
        r"weights without .*head\.bias.*stem\.weight",
    ),
    "weights with one more": (
        lambda fw: fw.network({"tail": np.zeros(1)}),
        InputError,
        r"weights with tail.*Allowed: stem\.weight",
    ),
    "a weight of another shape": (
        lambda fw: fw.network({"head.bias": np.zeros(9)}),
        InputError,
        r"head\.bias of shape \(9,\).*\(10,\) for this network",
    ),
    "a weight with NaN": (
        lambda fw: fw.network({"head.bias": np.full(10, np.nan)}),
        NonFiniteError,
        r"head\.bias holds NaN.*finite",
    ),
    "an unknown number type": (lambda fw: fw.network(dtype="float33"), DtypeError, r"dtype 'float33'.*float64, float"),
    "an unknown device": (
        lambda fw: fw.network(device="abacus:0"),
        DeviceUnavailableError,
        r"(torch|jax) sees no device 'abacus:0'.*Allowed: cpu.*odenet list backends",
    ),
    "a batch of another shape": (
        lambda fw: fw.evaluated((3, 1, 7, 8), np.zeros(3)),
        InputError,
        r"inputs \(3, 1, 7, 8\).*\(batch, 1, 8, 8\)",
    ),
    "a batch with too few targets": (
        lambda fw: fw.evaluated((3, 1, 8, 8), np.zeros(2)),
        InputError,
        r"targets \(2,\).*as many targets",
    ),
    "an empty batch": (
        lambda fw: fw.evaluated((0, 1, 8, 8), np.zeros(0)),
        InputError,
        r"inputs \(0, 1, 8, 8\).*at least one",
    ),
    "a class that is not there": (
        lambda fw: fw.evaluated((2, 1, 8, 8), np.array([3, 10])),
        InputError,
        r"targets from 3 to 10.*from 0 to 9",
    ),
    "a fraction of a class": (
        lambda fw: fw.evaluated((2, 1, 8, 8), np.array([0.5, 1])),
        InputError,
        r"targets from 0\.5 to 1.*whole numbers",
    ),
}

EVERY = {**NAMES, **STATES, **FIELDS, **GRIDS, **DEPTHS, **GRADIENTS, **NETWORKS}

ALONE: dict[str, Case] = {
    "torch: leaves on two devices": (
        lambda fw: odenet.solve(lambda t, y: y, (torch.ones(1), torch.ones(1, device="meta")), steps=1),
        StateError,
        r"y0 lies on cpu, meta.*one device",
    ),
    "torch: a closure over a computed tensor": (
        lambda fw: _through_closure("discrete-adjoint"),
        GradientError,
        r"computed outside of it \(by MulBackward0\).*weights.*gradient='backprop'",
    ),
    "torch: a closure over a computed tensor, continuously": (
        lambda fw: _through_closure("continuous-adjoint"),
        GradientError,
        r"computed outside of it.*pass that tensor in weights",
    ),
    "torch: a second derivative through an adjoint": (
        lambda fw: _second_derivative_torch("discrete-adjoint:correct=no"),
        UnsupportedError,
        r"second derivative through gradient='discrete-adjoint:correct=no'.*backprop",
    ),
    "torch: a second derivative through the other adjoint": (
        lambda fw: _second_derivative_torch("continuous-adjoint"),
        UnsupportedError,
        r"second derivative through gradient='continuous-adjoint'.*create_graph=False.*backprop",
    ),
    "torch: a second derivative through a checkpoint of some states": (
        lambda fw: _second_derivative_torch("checkpoint:states=1"),
        UnsupportedError,
        r"second derivative through gradient='checkpoint:states=1'.*backprop",
    ),
    "torch: a second derivative through a reversible solver": (
        lambda fw: _second_derivative_torch("reversible", "alf"),
        UnsupportedError,
        r"second derivative through gradient='reversible'.*backprop",
    ),
    "torch: a transform of torch.func through an adjoint": (
        lambda fw: torch.func.grad(
            lambda y: odenet.solve(lambda t, y: -y, y, steps=2, gradient="discrete-adjoint").y1.sum()
        )(torch.ones(2)),
        UnsupportedError,
        r"gradient='discrete-adjoint' inside a transform of torch\.func.*backprop",
    ),
    "torch: blocks that are no modules": (
        lambda fw: __import__("odenet_torch").ResidualStack([torch.tanh]),
        InputError,
        r"blocks of builtin.*torch\.nn\.Modules",
    ),
    "torch: no blocks": (lambda fw: __import__("odenet_torch").ResidualStack([]), DepthError, r"empty.*at least one"),
    "torch: one block, linear": (
        lambda fw: __import__("odenet_torch").ResidualStack([torch.nn.Tanh()], solver="heun"),
        DepthError,
        r"linear weights with 1 layers.*at least 2",
    ),
    "torch: different blocks, linear": (
        lambda fw: __import__("odenet_torch").ResidualStack([torch.nn.Tanh(), torch.nn.Linear(1, 1)], solver="heun"),
        InputError,
        r"2 blocks of different structures, to be interpolated.*along='piecewise'",
    ),
    "jax: different blocks": (
        lambda fw: __import__("odenet_jax").ResidualStack([jnp.tanh, jnp.sin]),
        InputError,
        r"2 blocks of different structures.*one structure",
    ),
    "jax: layers of different shapes": (
        lambda fw: odenet.solve(
            lambda t, y, w: w.sum() * y, jnp.ones(1), Depth.each([jnp.ones(1), jnp.ones(2)]), backend="jax"
        ),
        DepthError,
        r"shape \(1,\) in layer 0 and an array of shape \(2,\) in layer 1",
    ),
    "jax: layers of different numbers": (
        lambda fw: odenet.solve(lambda t, y, w: w * y, jnp.ones(1), Depth.each([1.0, 2.0])),
        DepthError,
        r"is 1\.0 in layer 0 and 2\.0 in layer 1.*arrays",
    ),
    "jax: no blocks": (lambda fw: __import__("odenet_jax").ResidualStack([]), InputError, r"0 blocks.*at least one"),
    "jax: float64 NumPy state without x64": (
        lambda fw: odenet.solve(lambda t, y: y, np.ones(2), steps=1, backend="jax"),
        DtypeError,
        r"y0 \(leaf\) is float64 while JAX has 64-bit numbers switched off.*jax_enable_x64",
    ),
    "jax: float64 NumPy weights without x64": (
        lambda fw: odenet.solve(lambda t, y, w: w * y, jnp.ones(2), np.ones(2), steps=1),
        DtypeError,
        r"weight is float64.*64-bit numbers switched off.*jax_enable_x64",
    ),
    "jax: traced times": (
        lambda fw: jax.jit(lambda t1: odenet.solve(lambda t, y: y, jnp.ones(2), steps=1, t1=t1).y1)(1.0),
        GridError,
        r"t1=.*is no number.*known before the solve",
    ),
    "jax: a traced number of steps": (
        lambda fw: jax.jit(lambda n: odenet.solve(lambda t, y: y, jnp.ones(2), steps=n).y1)(3),
        GridError,
        r"steps=.*whole number of steps",
    ),
    "jax: traced times to keep": (
        lambda fw: jax.jit(lambda ts: odenet.solve(lambda t, y: y, jnp.ones(2), steps=2, ts=ts).y1)(jnp.ones(1)),
        GridError,
        r"ts=.*is no (number|list)",
    ),
    "no framework": (
        lambda fw: odenet.solve(lambda t, y: y, 1.0, steps=1, backend="absent"),
        BackendUnavailableError,
        r"absent is known but not available: no_such_framework is not installed.*pip install absent",
    ),
    "unsupported pair": (
        lambda fw: odenet.solve(lambda t, y: y, 1.0, steps=1, backend="picky", gradient="continuous-adjoint"),
        UnsupportedError,
        r"picky does not offer gradient continuous-adjoint.*solvers euler; gradients backprop",
    ),
    "unsupported solver": (
        lambda fw: odenet.solve(lambda t, y: y, 1.0, steps=1, backend="picky", solver="rk4"),
        UnsupportedError,
        r"picky does not offer solver rk4.*take backend=.*which has that solver",
    ),
    "unknown network block": (
        lambda fw: NetSpec(block="dense"),
        UnknownNameError,
        r"block called 'dense'.*conv, bottleneck, mlp",
    ),
    "a network with one number as its inputs": (
        lambda fw: NetSpec(inputs=64),
        InputError,
        r"inputs=64 of a network.*\(1, 8, 8\)",
    ),
    "a network with a horizon in words": (
        lambda fw: NetSpec(horizon="1"),
        InputError,
        r"horizon='1' of a network.*finite number",
    ),
    "a seed below zero": (lambda fw: NetSpec().init(-1), InputError, r"seed=-1.*at least 0"),
    "a network of no depth": (lambda fw: NetSpec(depth=0), InputError, r"depth=0.*at least 1"),
    "a weights file of another kind": (
        lambda fw: odenet.load_weights("weights.pt"),
        FileError,
        r"weights\.pt ends in \.pt.*\.safetensors or \.npz",
    ),
    "a weights file that is not there": (
        lambda fw: odenet.load_weights("/nowhere/weights.npz"),
        FileError,
        r"there is no file /nowhere/weights\.npz",
    ),
    "output that cannot be written": (
        lambda fw: odenet.save_weights("/dev/null/weights.npz", {"w": np.ones(1)}),
        FileError,
        r"/dev/null/weights\.npz cannot be written.*choose another path",
    ),
    "command: unknown problem": (
        lambda fw: command("lorentz"),
        InputError,
        r"problem called 'lorentz'|'lorentz' is not one of|lorentz",
    ),
    "command: unknown solver": (
        lambda fw: command("decay", "--solver", "euler,rk5"),
        InputError,
        r"--solver.*'rk5'.*Allowed: euler.*take rk",
    ),
    "command: unknown backend": (
        lambda fw: command("decay", "--backend", "tensorflow"),
        InputError,
        r"--backend.*'tensorflow'.*Allowed:",
    ),
    "command: no depth": (lambda fw: command("decay", "--depth", "0"), InputError, r"--depth.*'0'.*at least 1"),
    "command: depth that is no number": (
        lambda fw: command("decay", "--depth", "deep"),
        InputError,
        r"--depth.*'deep' is no depth.*4\.\.64",
    ),
    "command: depths that go down": (
        lambda fw: command("decay", "--depth", "64..4"),
        InputError,
        r"--depth.*'64\.\.4'.*go up",
    ),
    "command: unknown number type": (
        lambda fw: command("decay", "--dtype", "float8"),
        InputError,
        r"--dtype.*'float8' is not one of.*float64",
    ),
    "command: unknown device": (
        lambda fw: command("decay", "--backend", "torch", "--device", "abacus"),
        DeviceUnavailableError,
        r"no device 'abacus'.*Allowed: cpu",
    ),
    "command: unwritable output": (
        lambda fw: command("decay", "--backend", "torch", "--depth", "4,8", "--json", "/dev/null/runs.json"),
        (FileError, InputError),
        r"/dev/null/runs\.json cannot be written",
    ),
}


def _through_closure(gradient):
    w = torch.ones(2, requires_grad=True) * 2
    return odenet.solve(lambda t, y: w * y, torch.ones(2), steps=2, gradient=gradient)


def _second_derivative_torch(gradient, solver="euler"):
    y0 = torch.ones(2, requires_grad=True)
    y1 = odenet.solve(lambda t, y: torch.sin(y), y0, steps=2, solver=solver, gradient=gradient).y1
    (first,) = torch.autograd.grad(y1.sum(), y0, create_graph=True)
    return torch.autograd.grad(first.sum(), y0)


EXACT = {odenet.Backprop: Way("json:loads")}
ABSENT = BackendEntry(
    "absent", "no_such_framework", "pip install absent", "nothing:Nothing", ("nothing",), EXACT, ("runge-kutta",)
)
PICKY = BackendEntry("picky", "json", "nothing to do", "nothing:Nothing", ("nothing",), EXACT, solvers=("euler",))


@pytest.fixture
def _announced(monkeypatch):
    """Two more backends than are installed: one without its framework, one that offers little."""
    places = {name.lower(): f"{__name__}:{name}" for name in ("ABSENT", "PICKY")}
    with announcing.announced(monkeypatch, places, beside=True):
        yield


def check(case, framework):
    run, error, pattern = case
    with pytest.raises(error) as caught:
        run(framework)
    message = " ".join(str(caught.value).split())
    assert re.search(pattern, message), message


@pytest.mark.parametrize("framework", [TORCH, JAX], ids=lambda framework: framework.name)
@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_in_every_backend(framework, case):
    check(case, framework)


@pytest.mark.usefixtures("_announced")
@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE)
def test_elsewhere(case):
    check(case, None)


def test_the_table_is_large_enough():
    assert len(EVERY) + len(ALONE) >= 45
