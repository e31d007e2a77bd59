"""What the drop-in's calls raise names the call and its own arguments, whatever part of the library raises it."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
from torch import nn

import odenet
from odenet import GradientError, InputError, OdenetError
from odenet_torch import odeint, odeint_adjoint, odeint_dense, odeint_event

FOREIGN = re.compile(
    r"PIDController|[^_]max_steps|throw=|Solution|steps=N|per_sample|solver=|gradient=|\bt1\b(?!=)|backend |weights|"
    r"the field|event's condition|model\.eval"
)
"""Names of `odenet.solve`'s arguments, which these calls do not have."""
Y0, T = torch.ones(3), torch.tensor([0.0, 1.0])


class Func(nn.Module):
    def __init__(self, slope=lambda t, y: -y) -> None:
        super().__init__()
        self.weight, self.slope = nn.Parameter(torch.tensor(1.0)), slope

    def forward(self, t, y):
        return self.slope(t, y) * self.weight


def never(t, y):
    return y[0] - 100


CALLS = {
    "odeint": lambda func, y0=Y0, **more: odeint(func, y0, T, **more),
    "odeint_adjoint": lambda func, y0=Y0, **more: odeint_adjoint(func, y0, T, **more),
    "odeint_event": lambda func, y0=Y0, **more: odeint_event(func, y0, T[0], event_fn=never, **more),
    "odeint_dense": lambda func, y0=Y0, **more: odeint_dense(func, y0, 0.0, 1.0, **more),
}
CALLS["odeint_event "] = functools.partial(CALLS["odeint_event"], odeint_interface=odeint_adjoint)
WRONG = {
    "steps": (Func(lambda t, y: -1e6 * (y - torch.cos(t))), {"options": {"max_num_steps": 20}}),
    "pole": (Func(lambda t, y: -50 * y * y), {"y0": -Y0, "rtol": 1e-4}),
    "nan": (Func(lambda t, y: y * math.nan), {}),
    "sizes": (Func(), {"options": {"min_step": 0.5, "max_step": 0.1}}),
    "norm, several": (Func(), {"options": {"norm": lambda y: y}}),
    "norm, none": (Func(), {"options": {"norm": lambda y: None}}),
    "norm, a word": (Func(), {"options": {"norm": lambda y: "a"}}),
    "rtol": (Func(), {"rtol": -1.0}),
    "slope": (Func(lambda t, y: y[:1]), {}),
    "method": (Func(), {"method": "rk5"}),
    "option": (Func(), {"options": {"max_stps": 3}}),
    "integers": (Func(), {"y0": torch.ones(3, dtype=torch.int64)}),
    "float8": (Func(), {"y0": torch.ones(3).to(torch.float8_e5m2)}),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_names_the_call_and_its_own_arguments(call, case):
    func, more = WRONG[case]
    with pytest.raises(OdenetError) as raised:
        CALLS[call](func, **more)
    said = str(raised.value)
    assert said.startswith(f"{call.strip()}: "), said
    assert not FOREIGN.search(said), said
    assert str(type(raised.value)(*raised.value.__reduce__()[1])) == said  # as another process would have it


def noisy(t, y):
    return nn.functional.dropout(y, 0.5)


def closed(scale):
    return Func(lambda t, y: y * scale)


@pytest.mark.parametrize(
    ("what", "func", "more"),
    [
        ("the way back stops", Func(lambda t, y: -10 * y), {"adjoint_options": {"max_num_steps": 1}}),
        ("dropout", Func(noisy), {}),
        ("a norm of a word", Func(), {"adjoint_options": {"norm": lambda all: "x"}}),
        ("a closure's tensor, changed", "closed", {}),
        ("a switch to eval", Func(), {"rtol": 1e-5}),
    ],
)
def test_an_error_of_the_way_back_does_so_too(what, func, more):
    func = closed(torch.ones(3, requires_grad=True) * 2) if func == "closed" else func

    def there_and_back():
        ys = odeint_adjoint(func, Y0, T, **{"rtol": 1e-4, "atol": 1e-4, **more})
        if what.startswith("a closure"):
            func.slope.__closure__[0].cell_contents.data.mul_(2)
        if what.endswith("eval"):
            func.eval()
        ys.sum().backward()

    with pytest.raises(OdenetError) as raised:
        there_and_back()
    said = str(raised.value)
    assert said.startswith("odeint_adjoint: "), said
    assert not FOREIGN.search(said), said
    if what == "the way back stops":
        assert isinstance(raised.value, GradientError)
        assert "adjoint_options={'max_num_steps': N}" in said


def test_what_a_solve_within_func_raises_stays_as_it_is():
    def inner(t, y):
        return odenet.solve(lambda t, y: y * math.nan, y, rtol=1e-3).y1

    with pytest.raises(odenet.SolveError, match=r"^the solve stopped .* PIDController"):
        odeint(inner, Y0, T)
    with pytest.raises(InputError, match=r"^mine"):
        odeint(lambda t, y: (_ for _ in ()).throw(InputError("mine, of the field")), Y0, T)


@pytest.mark.parametrize("back", [False, True])
def test_an_event_after_a_time_beside_which_1_is_rounding(back):
    t0, sign = torch.tensor(2.0**30), -1.0 if back else 1.0
    event_t, ys = odeint_event(
        Func(lambda t, y: -sign * torch.ones_like(y)),
        torch.tensor([2.0**12]),
        t0,
        event_fn=lambda t, y: y[0],
        reverse_time=back,
    )
    assert event_t.item() == 2.0**30 + sign * 2.0**12
    assert abs(ys[-1].item()) < 1e-3
