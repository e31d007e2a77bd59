"""What an option of the drop-ins cannot be is refused by an error of ours that names it as the caller wrote it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from odenet import InputError, StateError
from odenet_torch import odeint, odeint_adjoint, odeint_dense, odeint_event

HUGE, NAN = 10**400, float("nan")
NO_NUMBER = (
    HUGE,
    -HUGE,
    NAN,
    -1.0,
    "a",
    "",
    True,
    1j,
    {},
    b"1",
    np.str_("0.1"),
    torch.ones(1, device="meta"),
    object(),
)
WAYS = pytest.mark.parametrize("way", [odeint, odeint_adjoint])


class Decay(torch.nn.Module):
    """`y' = -a y`."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, t, y):
        """The slope."""
        return -self.a * y


def refused(way, match, **options):
    """Whether it is refused, in these words, and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=match.replace("^", f"^{way.__name__}: ")):
            way(Decay(), torch.ones(2), torch.tensor([0.0, 1.0]), **options)


@WAYS
@pytest.mark.parametrize(
    "name", ["first_step", "min_step", "max_step", "max_num_steps", "safety", "ifactor", "dfactor", "norm", "dtype"]
)
def test_options_of_adaptive_methods(way, name):
    for value in (*NO_NUMBER, *(() if name == "min_step" else (0,))):
        refused(way, f"^{name}=", method="dopri5", options={name: value})


@WAYS
@pytest.mark.parametrize("name", ["step_t", "jump_t"])
def test_times_of_steps_and_jumps(way, name):
    for value in (HUGE, NAN, "a", {}, [None], [0.5, NAN], ["a"], torch.ones(1, device="meta")):
        refused(way, f"^{name}=", method="dopri5", options={name: value})
    assert way(Decay(), torch.ones(2), torch.tensor([0.0, 1.0]), method="dopri5", options={name: 0.5}).isfinite().all()


@WAYS
def test_options_of_fixed_steps(way):
    for value in (*NO_NUMBER, 0, float("inf")):
        refused(way, "^step_size=", method="rk4", options={"step_size": value})
    for name in ("grid_constructor", "interp", "perturb", "norm"):
        for value in (HUGE, NAN, "a", 0, [0.1], object()):
            refused(way, f"^{name}=", method="rk4", options={name: value})
    refused(way, "steps", method="rk4", options={"step_size": 1e-300})
    for grid in ([0.0, NAN, 1.0], [0.0, 0.7, 0.3, 1.0]):
        refused(way, "order", method="rk4", options={"grid_constructor": lambda f, y, t, grid=grid: torch.tensor(grid)})
    refused(way, "one-dimensional", method="rk4", options={"grid_constructor": lambda f, y, t: None})


@WAYS
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_tolerances_methods_and_unknown_options(way, method):
    back = ("adjoint_rtol", "adjoint_atol") if way is odeint_adjoint else ()
    for name in ("rtol", "atol", *back):
        for value in (*NO_NUMBER, [1e-3, "a"], torch.tensor([1e-3, NAN]), torch.ones(3)):
            refused(way, f"^{name}=", method=method, **{name: value})
    for value in (HUGE, "a", 0, [0.1]):
        refused(way, "^options=", method=method, options=value)
        refused(way, "method", method=value)
    refused(way, "has no option", method=method, options={"stepsize": 0.1})


def test_what_the_adjoint_alone_takes():
    for name, values in {
        "adjoint_options": (HUGE, "a", 0, []),
        "adjoint_params": (HUGE, "", {}, [0.1], torch.ones(2)),
    }.items():
        for value in values:
            refused(odeint_adjoint, f"^{name}=", method="dopri5", **{name: value})
    refused(odeint_adjoint, "norm", adjoint_options={"norm": torch.ones(2)})
    t = torch.tensor([0.0, 1.0])
    y = odeint_adjoint(Decay(), torch.ones(2), t, method="rk4", adjoint_options={"norm": "seminorm"})
    assert y[-1].tolist() == pytest.approx([0.6068, 0.6068], abs=1e-4)


def test_states_times_and_events():
    t, y0, field = torch.tensor([0.0, 1.0]), torch.ones(2), Decay()
    for state in (torch.ones(2, device="meta"), torch.eye(2).to_sparse(), (y0, torch.ones(2, device="meta"))):
        with pytest.raises(StateError, match="y0 has a tensor"):
            odeint(field, state, t)
    for times in (torch.tensor([0.0, float("inf")]), torch.ones(2, device="meta")):
        with pytest.raises(InputError, match=r"finite|values"):
            odeint(field, y0, times)
    for value in (HUGE, "a", None, 1j, {}, torch.ones(0)):
        with pytest.raises(StateError, match="event_fn returned"):
            odeint(field, y0, t, event_fn=lambda t, y, value=value: value)
        with pytest.raises(InputError, match="t0"):
            odeint_event(field, y0, value, event_fn=lambda t, y: t - 0.5)
        with pytest.raises(InputError, match="t0"):
            odeint_dense(field, y0, 0.0, value)
    with pytest.raises(InputError, match="func is"):
        odeint(3, y0, t)
