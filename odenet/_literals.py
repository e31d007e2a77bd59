"""The names that a user may write, as types: an editor completes them, and a type checker refuses a misspelt one.

A test holds them to the records that they name. What other packages announce is not among them: take the record
(`odenet.solver(name)`, `odenet.gradient(name)`, `odenet.known()[name]`), which every function takes, too. So with
options that are not listed: `odenet.Checkpoint(segments=8)`.
"""

from typing import Literal

SolverName = Literal[
    "euler",
    "heun",
    "midpoint",
    "ralston",
    "fehlberg2",
    "kutta3",
    "ssprk3",
    "bosh3",
    "rk4",
    "rk38",
    "dopri5",
    "tsit5",
    "dopri8",
    "reversible-heun",
    "alf",
    "reversible",
    "bdia",
    "two-step-midpoint",
    "momentum",
    "hamiltonian",
    "leapfrog",
    "implicit-euler",
    "kvaerno3",
    "kvaerno4",
    "kvaerno5",
    "radau",
    "bdf",
    "lsoda",
    "dop853",
    "resnet",
    "heunnet",
    "revheun",
    "asynchronous-leapfrog",
    "mali",
    "nystrom",
    "momentumnet",
    "additive-coupling",
    "verlet",
    "beuler",
    "radau5",
    "reversible:euler",
    "reversible:heun",
    "reversible:midpoint",
    "reversible:ralston",
    "reversible:fehlberg2",
    "reversible:kutta3",
    "reversible:ssprk3",
    "reversible:bosh3",
    "reversible:rk4",
    "reversible:rk38",
    "reversible:dopri5",
    "reversible:tsit5",
    "reversible:dopri8",
]
"""odenet's own solvers, their aliases, and Runge-Kutta methods made reversible."""

GradientName = Literal[
    "backprop",
    "checkpoint",
    "reversible",
    "continuous-adjoint",
    "discrete-adjoint",
    "adjoint",
    "backpropagation",
    "checkpointing",
    "checkpoint:bits=8",
    "discrete-adjoint:correct=no",
    "discrete-adjoint:iterations=2",
    "discrete-adjoint:predictor=extrapolate",
    "auto",
]
"""odenet's own gradient methods, their aliases, the variants worth a look, and the wish to have one chosen."""

BackendName = Literal[
    "torch",
    "jax",
    "torchdiffeq",
    "diffrax",
    "scipy",
]
"""The backends of this distribution."""

DtypeName = Literal["float64", "float32", "bfloat16", "float16", "complex64", "complex128"]
"""Number types of a network or a state."""

DeviceName = Literal["cpu", "cuda", "mps"]
"""Kinds of devices; one of several is named by a number behind a colon, which is a plain string."""
