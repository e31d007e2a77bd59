"""Equal steps read no number on the host, forward and backward: a CUDA graph could hold them."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import odenet_torch
from odenet import Depth
from odenet_torch.gradients import known_ends

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
UNSEEN = ("tolist", "numpy", "cpu", "__array__")
"""What reads a tensor on the CPU where it lies, and on a device waits for it."""
WAYS = [
    *(("euler", gradient) for gradient in ("backprop", "checkpoint", "checkpoint:segments=3", "checkpoint:states=3")),
    *((solver, "discrete-adjoint") for solver in ("euler", "heun", "rk4")),
    *(("euler", f"discrete-adjoint:{option}") for option in ("iterations=2", "anchors=4", "predictor=extrapolate")),
    *(("euler", gradient) for gradient in ("continuous-adjoint", "checkpoint:bits=8")),
    *((solver, "reversible") for solver in ("alf", "reversible-heun", "reversible:euler")),
]


class Reads(TorchDispatchMode):
    """Counts operations that wait for a number of a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


def counted(run):
    with contextlib.ExitStack() as stack:
        reads = stack.enter_context(Reads())

        def watched(name):
            own = getattr(torch.Tensor, name)

            def read(self, *arguments, **choices):
                reads.count += 1
                return own(self, *arguments, **choices)

            return mock.patch.object(torch.Tensor, name, read)

        for name in UNSEEN:
            stack.enter_context(watched(name))
        # kept states are compared at once on the host, and as here where numbers are waited for
        stack.enter_context(mock.patch.object(known_ends, "looks", return_value=False))
        run()
    return reads.count


def networks(steps, solver, gradient, conv=False):
    """A residual network, and the same by a function of stacked weights."""
    torch.manual_seed(0)
    block = (lambda: nn.Conv2d(2, 2, 3, padding=1)) if conv else (lambda: nn.Linear(4, 4))
    blocks = [nn.Sequential(block(), nn.Tanh()) for _ in range(steps)]
    stack = odenet_torch.ResidualStack(blocks, solver=solver, gradient=gradient, along="piecewise")
    return stack, torch.randn(3, 2, 5, 5) if conv else torch.randn(3, 4)


@pytest.mark.parametrize(
    ("solver", "gradient", "conv"),
    [*((*way, False) for way in WAYS), ("heun", "discrete-adjoint", True), ("euler", "checkpoint", True)],
)
def test_the_number_of_host_reads_does_not_grow_with_depth(solver, gradient, conv):
    found = []
    for steps in (6, 18):
        net, x = networks(steps, solver, gradient, conv)
        for _ in range(2):  # the first pass over blocks looks at all that they do
            net(x).square().mean().backward()
        outputs = []
        forward = counted(lambda net=net, x=x, outputs=outputs: outputs.append(net(x).square().mean()))
        backward = counted(lambda outputs=outputs: outputs[0].backward())
        found.append((forward, backward))
    assert found[0] == found[1]
    # a certificate is read once, on the CPU; on CUDA that comes when the device has it (`certificate.certify`)
    forward, backward = found[0]
    assert forward <= 1  # f's first state is compared with its copy once, on the CPU alone
    assert backward <= 4
    certified = ("discrete-adjoint", "reversible", "checkpoint", "continuous-adjoint")
    assert backward == 0 or gradient.startswith(certified)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint"])
def test_a_function_of_stacked_weights_reads_none_either(gradient):
    def run(steps):
        y0 = torch.ones(3, 4)
        torch.manual_seed(0)
        weights = Depth(torch.randn(steps, 4, 4, requires_grad=True), "piecewise")
        field = lambda t, y, w: torch.tanh(y @ w)  # noqa: E731

        def step():
            solution = odenet_torch.solve(field, y0, weights, solver="euler", gradient=gradient)
            solution.y1.square().mean().backward()

        step()
        return counted(step)

    assert run(4) == run(12)


def test_the_count_sees_a_read():
    assert counted(lambda: torch.ones(2).sum().item()) == 1
    assert counted(lambda: bool(torch.ones(()) > 0)) == 1
    assert counted(lambda: torch.ones(2).tolist()) == 1
