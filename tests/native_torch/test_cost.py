"""What a solve costs on torch, counted and not timed: operations, host reads, saved tensors, bytes alive."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from odenet import Depth
from odenet_torch import solve
from odenet_torch.verbs.measure import LiveBytes


class Operations(TorchDispatchMode):
    """Counts every operation that reaches the device."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def field(t, y, w):
    return torch.tanh(y @ w)


WITHIN = {"aten.mm", "aten.tanh"}  # of the field


def weights(kind, steps, width=8):
    count = {"shared": 1, "piecewise": steps, "linear": steps + 1}[kind]
    w = 0.1 * torch.ones(count, width, width)
    return Depth((w[0] if kind == "shared" else w).requires_grad_(), kind)


def operations(steps, gradient="backprop", kind="shared", solver="euler"):
    made = weights(kind, steps)
    with Operations() as mode:
        y1 = solve(field, torch.ones(4, 8), made, steps=steps, solver=solver, gradient=gradient).y1
        forward = mode.seen.copy()
        torch.autograd.grad(y1.sum(), made.tree)
    return forward, mode.seen


def beyond_field(seen):
    return sum(count for name, count in seen.items() if name not in WITHIN)


@pytest.mark.parametrize("gradient", ["backprop", "discrete-adjoint"])
@pytest.mark.parametrize("kind", ["shared", "piecewise"])
def test_an_euler_step_is_at_most_four_operations_beyond_the_field(gradient, kind):
    # a function is looked at once in its life, in its first solve
    _, few, many = (operations(steps, gradient, kind)[0] for steps in (2, 10, 50))
    assert many["aten.mm"] == 50
    assert beyond_field(many) - beyond_field(few) <= 4 * 40
    assert beyond_field(few) <= 4 * 10 + 10


@pytest.mark.parametrize("gradient", ["backprop", "discrete-adjoint", "continuous-adjoint"])
@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_no_number_is_read_by_the_host(gradient, solver):
    operations(4, gradient, solver=solver)  # a function is looked at once in its life, in its first solve
    _, seen = operations(4, gradient, solver=solver)
    assert seen["aten._local_scalar_dense"] == seen["aten.nonzero"] == seen["aten.item"] == 0


@pytest.mark.parametrize("kind", ["shared", "piecewise", "linear"])
@pytest.mark.parametrize("gradient", ["backprop", "discrete-adjoint", "continuous-adjoint"])
def test_operations_grow_as_the_steps_do(gradient, kind):
    """A gradient of N layers that is indexed, not unbound, takes N operations on N layers.

    Certificates of several steps are joined in one operation, of which few steps have none.
    """
    # a function is looked at once in its life, in its first solve
    _, *counts = [sum(operations(steps, gradient, kind)[1].values()) for steps in (16, 16, 32, 64)]
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.02)


def alive(steps, gradient):
    """Most bytes alive at once, and bytes that the forward pass saves for the backward pass."""
    made, saved = weights("shared", steps), 0

    def pack(tensor):
        nonlocal saved
        saved += tensor.untyped_storage().nbytes()
        return tensor

    with LiveBytes() as mode:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y1 = solve(field, torch.ones(64, 8), made, steps=steps, gradient=gradient).y1
        torch.autograd.grad(y1.sum(), made.tree)
    return mode.peak, saved


@pytest.mark.parametrize(
    ("gradient", "deep"), [("discrete-adjoint", 1024), ("discrete-adjoint:iterations=3", 128), ("adjoint", 128)]
)
def test_memory_of_the_adjoints_does_not_grow_with_depth(gradient, deep):
    (peak, saved), (deep_peak, deep_saved) = alive(16, gradient), alive(deep, gradient)
    assert deep_peak == pytest.approx(peak, rel=0.05)
    assert deep_saved == pytest.approx(saved, rel=0.05)
    assert peak < 20 * 64 * 8 * 4


def test_memory_of_backprop_does_grow_with_depth():
    """So the measurement sees what it should see."""
    (peak, saved), (deep_peak, deep_saved) = alive(16, "backprop"), alive(128, "backprop")
    assert 6 < deep_peak / peak < 9
    assert 6 < deep_saved / saved < 9


def test_what_a_node_of_the_adjoint_keeps_does_not_grow_with_depth():
    """Between forward and backward pass: the last state and the weights, whatever the depth."""
    kept = []
    for steps in (16, 256):
        made, saved = weights("shared", steps), {}
        y1 = solve(field, torch.ones(64, 8), made, steps=steps, gradient="discrete-adjoint").y1
        stack, seen = [y1.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for tensor in getattr(node, "saved_tensors", ()) or ():
                if tensor is not None:
                    saved[tensor.data_ptr()] = tensor.nbytes
            stack += [following for following, _ in node.next_functions]
        kept.append((sum(saved.values()), len(seen)))
    assert kept[0] == kept[1]
    assert kept[0][0] == 64 * 8 * 4 + 8 * 8 * 4
