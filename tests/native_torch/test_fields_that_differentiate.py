"""Fields that differentiate inside: exact traces and Hamiltonian nets, by torch.func and by torch.autograd."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odenet
from odenet import GradientError, GridError, UnsupportedError
from odenet_torch import NeuralODE, ResidualStack, odeint, odeint_adjoint, solve

METHODS = (
    "checkpoint",
    "checkpoint:segments=2",
    "checkpoint:states=2",
    "discrete-adjoint",
    "continuous-adjoint",
)
FIXED: dict[str, Any] = {"steps": 6, "solver": "rk4"}
ADAPTIVE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch, in forward mode


class Energy(nn.Module):
    """Slopes (dH/dp, -dH/dq) of a small net's H."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.way = way

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        def energy(y: Tensor) -> Tensor:
            return self.net(y).sum()

        if self.way == "grad":
            slope = torch.func.grad(energy)(y)
        elif self.way == "vmap":
            slope = torch.func.vmap(torch.func.grad(energy))(y)
        elif self.way == "vjp":
            slope = torch.func.vjp(energy, y)[1](torch.ones((), dtype=y.dtype))[0]
        elif self.way == "functional_call":
            held = dict(self.net.named_parameters())
            slope = torch.func.grad(lambda y: torch.func.functional_call(self.net, held, (y,)).sum())(y)
        elif self.way == "jacfwd":
            slope = torch.func.vmap(torch.func.jacfwd(energy))(y)
        elif self.way == "functional":
            slope = torch.autograd.functional.vjp(energy, y, create_graph=torch.is_grad_enabled())[1]
        elif self.way == "forward":  # which torch turns off in the forward of an autograd.Function
            parts = []
            for i in range(2):
                with torch.autograd.forward_ad.dual_level():
                    dual = torch.autograd.forward_ad.make_dual(y, torch.eye(2, dtype=y.dtype)[i].expand_as(y))
                    parts.append(torch.autograd.forward_ad.unpack_dual(self.net(dual)).tangent)
            slope = torch.cat(parts, -1)
        elif self.way == "enabled":
            with torch.enable_grad():
                y = y if y.requires_grad else y.detach().requires_grad_()
                (slope,) = torch.autograd.grad(energy(y), y, create_graph=True)
        else:  # what is recorded, or not, is left to the caller
            (slope,) = torch.autograd.grad(energy(y), y, create_graph=True)
        q, p = slope.unbind(-1)
        return torch.stack([p, -q], -1)


MORE = ("grad", "vjp", "functional_call", "jacfwd", "functional", "enabled")
WAYS = ("vmap", "plain", "forward", *(pytest.param(way, marks=pytest.mark.slow) for way in MORE))


def of(field: nn.Module, solved: Callable[[Tensor], Tensor], wanted: bool = True) -> Tensor:
    """All gradients of a loss of what is solved, in a row."""
    y0 = torch.tensor([[1.0, 0.3], [-0.4, 0.8]], dtype=torch.float64, requires_grad=wanted)
    loss = solved(y0).square().sum()
    inputs = [*field.parameters(), *([y0] if wanted else [])]
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)  # of the last bias, 0
    return torch.cat([leaf.reshape(-1) for leaf in found])


@pytest.mark.parametrize("way", WAYS)
def test_each_gradient_is_backprops(way: str) -> None:
    right = of(reference := Energy("enabled"), lambda y: odenet.solve(reference, y, t1=1.0, **FIXED).y1)
    for method in ("backprop", *METHODS):
        field = Energy(way)
        for choices in (FIXED, ADAPTIVE):
            found = of(field, lambda y: odenet.solve(field, y, t1=1.0, gradient=method, **choices).y1)  # noqa: B023
            exact = choices is FIXED and method in ("backprop", *METHODS[:3])
            torch.testing.assert_close(found, right, rtol=0, atol=1e-13 if exact else 2e-4, msg=f"{method} {choices}")
        with torch.no_grad():
            y0 = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
            one, other = (odenet.solve(field, y0, t1=1.0, gradient=method, **c).y1 for c in (FIXED, ADAPTIVE))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert not one.requires_grad


@pytest.mark.parametrize("way", ["vmap", "plain", "forward"])
@pytest.mark.parametrize("wanted", [True, False])
def test_closures_modules_and_the_drop_in(way: str, wanted: bool) -> None:
    right = of(reference := Energy("enabled"), lambda y: odenet.solve(reference, y, t1=1.0, **FIXED).y1)
    right = right if wanted else right[:-4]
    rtol, atol, field, t = 1e-5, 1e-6, Energy(way), torch.tensor([0.0, 1.0], dtype=torch.float64)
    rows = odenet.PIDController(rtol=1e-5, atol=1e-6, per_sample=True)
    solves: dict[str, Callable[[Tensor], Tensor]] = {
        "NeuralODE": NeuralODE(field, gradient="checkpoint", **ADAPTIVE),
        "closure": lambda y: odenet.solve(lambda t, y: field(t, y), y, t1=1.0, gradient="checkpoint", **FIXED).y1,
        "per_sample": lambda y: odenet.solve(field, y, t1=1.0, control=rows).y1,
        "odeint": lambda y: odeint(field, y, t, rtol=rtol, atol=atol)[-1],
        "rk4": lambda y: odeint(field, y, t, method="rk4", options={"step_size": 1 / 6})[-1],
        "odeint_adjoint": lambda y: odeint_adjoint(field, y, t, rtol=rtol, atol=atol)[-1],
        "adjoint by rk4": lambda y: odeint_adjoint(field, y, t, method="rk4", options={"step_size": 1 / 6})[-1],
    }
    for name, solved in solves.items():
        torch.testing.assert_close(of(field, solved, wanted), right, rtol=0, atol=2e-4, msg=name)


class Drift(nn.Module):
    """A block, and one that differentiates."""

    def __init__(self, differentiates: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.differentiates = differentiates

    def forward(self, y: Tensor) -> Tensor:
        if not self.differentiates:
            return self.linear(y).tanh()
        return torch.func.vmap(torch.func.grad(lambda y: self.linear(y).tanh().sum()))(y)


@pytest.mark.parametrize("method", METHODS[:4])
def test_blocks_some_of_which_differentiate(method: str) -> None:
    torch.manual_seed(0)
    blocks = [Drift(n % 2 == 1) for n in range(4)]
    x = torch.randn(5, 3)
    stack = ResidualStack(blocks, gradient=method)
    right = torch.autograd.grad(ResidualStack(blocks)(x).square().sum(), list(stack.parameters()))
    for _ in range(2):
        found = torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))
        torch.testing.assert_close(found, right, rtol=1e-6, atol=5e-2 if method == "discrete-adjoint" else 1e-6)


def test_dropout_before_a_field_is_found_to_differentiate() -> None:
    """The pass that begins anew draws what it drew."""

    class Noisy(Drift):
        def forward(self, y: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(y), 0.5)

    blocks = [Noisy(n % 2 == 1) for n in range(4)]
    x = torch.randn(5, 3)

    def gradients(method: str) -> Any:
        torch.manual_seed(1)
        return torch.autograd.grad(
            ResidualStack(blocks, gradient=method)(x).square().sum(), [p for b in blocks for p in b.parameters()]
        )

    torch.testing.assert_close(gradients("checkpoint"), gradients("backprop"))


def test_changed_buffers_are_refused_where_the_pass_would_begin_anew() -> None:
    blocks = [nn.BatchNorm1d(3), Drift(True)]
    with pytest.raises(odenet.GradientError, match="changes buffers and takes derivatives"):
        ResidualStack(blocks, gradient="checkpoint")(torch.randn(5, 3))


def test_a_budget_of_memory_is_refused() -> None:
    field = Energy("vmap")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="checkpoint with memory="):
            of(field, lambda y: odenet.solve(field, y, t1=1.0, gradient="checkpoint:memory=100000", **FIXED).y1)


def test_vmap_of_an_adaptive_solve_is_refused() -> None:
    y, t = torch.rand(3, 2) + 0.5, torch.tensor([0.0, 1.0])

    def slope(t: Tensor, y: Tensor) -> Tensor:
        return -(y**2)

    rows = odenet.PIDController(rtol=1e-4, per_sample=True)
    solves: dict[str, Callable[[Tensor], Tensor]] = {
        "y0": lambda y: odenet.solve(slope, y, t1=1.0, rtol=1e-4).y1,
        "a parameter": lambda a: odenet.solve(lambda t, y: -a * y, torch.ones(2), t1=1.0, rtol=1e-4).y1,
        "weights": lambda a: odenet.solve(lambda t, y, w: -w * y, torch.ones(2), a, t1=1.0, rtol=1e-4).y1,
        "rows": lambda y: odenet.solve(slope, y[None], t1=1.0, control=rows).y1,
        "dense": lambda y: odenet.solve(slope, y, t1=1.0, rtol=1e-4, dense=True).at(0.5),
        "event": lambda y: odenet.solve(slope, y, t1=1.0, rtol=1e-4, event=lambda t, y: y[0] - 0.1).y1,
        "odeint": lambda y: odeint(slope, y, t)[-1],
        "odeint_adjoint": lambda y: odeint_adjoint(slope, y, t, adjoint_params=())[-1],
    }
    for name, solved in solves.items():
        for transform in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(lambda y: f(y).sum()))):
            with pytest.raises(UnsupportedError, match=r"inside .*torch\.func"):
                print(name, transform(solved)(y))
    with pytest.raises(GridError, match="t1"):
        torch.func.vmap(lambda t: odenet.solve(slope, y, t1=t, rtol=1e-4).y1)(torch.rand(3))
    with pytest.raises(GridError, match="t1"):
        torch.func.vmap(lambda t: odenet.solve(slope, y, t1=t, steps=3).y1)(torch.rand(3))


def test_other_transforms_of_an_adaptive_solve() -> None:
    y = torch.tensor([0.7, 1.1], dtype=torch.float64)

    def solved(y: Tensor) -> Tensor:
        return odenet.solve(lambda t, y: -(y**2), y, t1=1.0, rtol=1e-9, atol=1e-11).y1

    right = torch.diag(1 / (1 + y) ** 2)  # y0 / (1 + y0 t)
    torch.testing.assert_close(torch.func.jacrev(solved)(y), right)
    torch.testing.assert_close(torch.func.jacfwd(solved)(y), right)
    with torch.no_grad():  # forward mode needs no graph
        torch.testing.assert_close(torch.func.jvp(solved, (y,), (torch.ones_like(y),))[1], right.diag())

    def stopped(y: Tensor) -> Tensor:
        solution = odenet.solve(lambda t, y: -(y**2), y, t1=9.0, rtol=1e-9, event=lambda t, y: y[0] - 0.3)
        assert solution.event_t is not None
        return solution.event_t

    torch.testing.assert_close(torch.func.grad(stopped)(y), torch.tensor([y[0] ** -2, 0.0], dtype=y.dtype))


class Scaled(torch.autograd.Function):
    """k x, with what torch's own nodes have under the same names on its context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor) -> Tensor:
        """Writes on its context as a user may."""
        ctx.variable, ctx.name = k, "scaled"
        ctx.save_for_backward(x)
        return k * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """By what stands there."""
        return ctx.variable * g, (ctx.saved_tensors[0] * g).sum()


@pytest.mark.parametrize("choice", [{"steps": 8}, {"rtol": 1e-6, "atol": 1e-6}], ids=["equal", "adaptive"])
@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_what_a_function_writes_on_its_context_is_no_leaf_of_the_graph(gradient: Any, choice: Any) -> None:
    torch.manual_seed(0)
    weight, y0 = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    found = []
    for scaled in (Scaled.apply, torch.mul):
        leaves = [weight.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]

        def field(t: Any, y: Tensor, leaves: Any = leaves, scaled: Any = scaled) -> Tensor:
            return scaled(torch.tanh(y @ leaves[0]), leaves[1])

        solve(field, y0, gradient=gradient, **choice).y1.square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_node_that_was_recorded_before_is_called_by_its_class() -> None:
    outer = Scaled.apply(torch.ones(3), torch.tensor(0.7, requires_grad=True))
    with pytest.raises(GradientError, match=r"computed outside of it \(by ScaledBackward\)"):
        solve(lambda t, y: y * outer, torch.ones(3), steps=2, gradient="discrete-adjoint")


class Detached(Energy):
    """As `Energy`, of a copy that the field makes of its state: a leaf of the evaluation's own."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(at).sum(), at, create_graph=True)
        return slope.flip(-1) - y


@pytest.mark.parametrize(
    ("method", "choices"),
    [(m, FIXED) for m in METHODS] + [(m, ADAPTIVE) for m in METHODS if "segments" not in m],
)
def test_a_leaf_that_the_field_makes_for_itself_is_none_that_it_closes_over(method: str, choices: Any) -> None:
    found = []
    for gradient in ("backprop", method):
        field = Detached("")
        y = torch.tensor([[0.5, -0.3], [1.0, 0.2]], dtype=torch.float64, requires_grad=True)
        solve(field, y, gradient=gradient, **choices).y1.square().sum().backward()
        found.append(
            torch.cat([y.grad.flatten(), *(p.grad.flatten() for p in field.parameters() if p.grad is not None)])
        )
    assert torch.allclose(*found, rtol=0.0, atol=2e-3 * found[0].norm().item())


def test_a_leaf_that_is_kept_is_one_that_the_field_closes_over() -> None:
    kept: list[Tensor] = []
    net = Energy("").net

    def keeps(t: Tensor, y: Tensor) -> Tensor:
        kept.append(y.detach().requires_grad_())
        return torch.tanh(kept[-1]) * net(y)

    y = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(GradientError):
        solve(keeps, y, gradient="checkpoint:states=2", **FIXED).y1.sum().backward()


class CallsBackward(Energy):
    """Its energy is differentiated by `backward()`, which adds to the `.grad` of what there is."""

    def __init__(self, how: str) -> None:
        super().__init__("")
        self.how = how

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            energy = self.net(x).sum()
            if self.how == "inputs":
                energy.backward(inputs=[x])
            elif self.how == "function":
                torch.autograd.backward(energy)
            else:
                energy.backward()
        assert x.grad is not None
        return self.net(y) - x.grad


@pytest.mark.parametrize("how", ["method", "function", "inputs"])
def test_a_field_that_adds_to_the_gradients_of_its_parameters(how: str) -> None:
    if how == "function" and threading.active_count() > 1:
        pytest.skip("another thread may have added")
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solves: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        method: lambda f, y, method=method: odenet.solve(f, y, t1=1.0, gradient=method, **FIXED).y1
        for method in METHODS
    } | {
        "adaptive": lambda f, y: odenet.solve(f, y, t1=1.0, gradient="checkpoint", **ADAPTIVE).y1,
        "odeint_adjoint": lambda f, y: odeint_adjoint(f, y, t, rtol=1e-5, atol=1e-6)[-1],
    }
    right = of(field := CallsBackward("inputs"), lambda y: odenet.solve(field, y, t1=1.0, **FIXED).y1)
    for name, solved in solves.items():
        if how == "inputs":
            found = of(field := CallsBackward(how), lambda y: solved(field, y))  # noqa: B023
            torch.testing.assert_close(found, right, rtol=0, atol=2e-4, msg=name)
            continue
        with pytest.raises(GradientError, match=r"calls backward\(\)"):
            of(field := CallsBackward(how), lambda y: solved(field, y))  # noqa: B023
    frozen = CallsBackward("method").requires_grad_(False)
    y = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    odenet.solve(frozen, y, t1=1.0, gradient="checkpoint", **FIXED).y1.sum().backward()
