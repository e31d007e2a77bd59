"""What goes wrong in the drop-in is said with its own name, and with the names of its own arguments."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet_jax import odeint

T = np.array([0.0, 1.0])
OURS = re.compile(r"\b(PIDController|max_steps|max_step|throw|ts|t0|t1|steps=N there|gradient=|field|weights?)\b")

pytestmark = pytest.mark.usefixtures("x64")


def decay(y, t):
    return -y


def called(func=decay, y0=(1.0, 1.0), t=T, **choices):
    return odeint(func, jnp.array(y0), t, **choices)


CALLS = {
    "steps": (odenet.SolveError, "mxstep", lambda: called(mxstep=2)),
    "not finite": (odenet.SolveError, "func", lambda: called(lambda y, t: y * jnp.nan)),
    "blown up": (odenet.SolveError, "vanished", lambda: called(lambda y, t: y**2, (5.0,))),
    "order": (odenet.GridError, r"t=\[", lambda: called(t=np.array([0.0, 1.0, 0.5]))),
    "end": (odenet.GridError, r"t\[-1\]=nan", lambda: called(t=np.array([0.0, np.nan]))),
    "state": (odenet.DtypeError, "y0 is int", lambda: called(y0=(1, 2))),
    "key": (odenet.StateError, "y0", lambda: odeint(decay, jax.random.key(0), T)),
    "tree of tolerances": (odenet.InputError, "atol", lambda: called(atol={"a": 1e-3})),
    "negative": (odenet.InputError, "rtol", lambda: called(rtol=np.array([-1.0, 1.0]))),
    "complex": (odenet.DtypeError, "func returned complex", lambda: called(lambda y, t: 1j * y)),
    "words": (odenet.InputError, "rtol", lambda: called(rtol=np.array(["a"]))),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_and_its_arguments_are_named(name):
    kind, named, call = CALLS[name]
    with pytest.raises(kind, match=named) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("odeint: ")
    assert not OURS.search(text.replace("odenet.solve with gradient=", "")), text


def test_the_way_back_says_it_too():
    def value(y):
        return odeint(lambda y, t: -30 * y, y, np.array([0.0, 0.5]), rtol=1e-5, atol=1e-5, mxstep=20)[-1].sum()

    with pytest.raises(odenet.GradientError, match="mxstep") as caught:
        jax.grad(value)(jnp.full(1, 1e-9))
    assert "continuous-adjoint" not in str(caught.value)


def test_what_func_raises_stays_as_it_is():
    error = odenet.InputError("of the field")

    def func(y, t):
        raise error

    with pytest.raises(odenet.InputError) as caught:
        called(func)
    assert str(caught.value).startswith("of the field")


def test_steps_are_counted_in_32_bits():
    control = odenet.PIDController(1e-3, 1e-6, max_steps=10**12)
    with pytest.raises(odenet.InputError, match="int32"):
        odenet.solve(lambda t, y: -y, jnp.ones(2), control=control)


def test_words_are_no_tolerances():
    with pytest.raises(odenet.InputError, match="rtol"):
        odenet.solve(lambda t, y: -y, jnp.ones(2), rtol=np.array(["a"]))
