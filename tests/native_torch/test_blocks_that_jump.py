"""Blocks that round, choose or count by their state: where a state is rebuilt, the certificate says what that costs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import odenet
from odenet_torch import ResidualStack
from odenet_torch.field.jumps import jumps

WIDTH = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, x):
        return self.out(self.jump(torch.tanh(self.inner(x))))

    def jump(self, h):
        return h


class Rounded(Block):
    """Straight through, as in training with quantised activations."""

    def jump(self, h):
        return h + ((4 * h).round() / 4 - h).detach()


class Signs(Block):
    def jump(self, h):
        return h + (h.sign() - h).detach()


class Fake(Block):
    def jump(self, h):
        return torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)


class Truncated(Block):
    def jump(self, h):
        return h + (3 * h).long().to(h.dtype) / 3


class Masked(Block):
    def jump(self, h):
        return h.cos() * (h > 0.1).to(h.dtype)


class Routed(Block):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def jump(self, h):
        score, index = (3 * h).softmax(-1).topk(1, -1)
        every = torch.stack([expert(h) for expert in self.experts], 1)
        return every.gather(1, index[..., None].expand(-1, -1, WIDTH))[:, 0] * score


class Codebook(Block):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(6, WIDTH))

    def jump(self, h):
        nearest = self.codes[torch.cdist(h.detach(), self.codes).argmin(-1)]
        return h + (nearest - h).detach() + (nearest - nearest.detach())


class Hard(Block):
    def jump(self, h):
        return F.gumbel_softmax(3 * h, hard=True)


class Largest(Block):
    """An index that no operation of its own makes, as that of a maximum or of a sorted state."""

    def jump(self, h):
        return h * torch.zeros_like(h).scatter(-1, h.max(-1, keepdim=True).indices, 2.0)


class Sorted(Block):
    def jump(self, h):
        return h[..., h.detach().sum(0).sort().indices]


JUMPING = [Rounded, Signs, Fake, Truncated, Masked, Routed, Codebook, Hard, Largest, Sorted]


def gradients(kind, gradient, seed):
    torch.manual_seed(seed)
    stack = ResidualStack([kind() for _ in range(8)], gradient=gradient).double()
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    stack(x).square().sum().backward()
    return [x.grad, *(p.grad for p in stack.parameters() if p.grad is not None)], stack.certificate


def error(found, expected):
    """Of the tensor that is off most, by its norm."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in pairs)


@pytest.mark.parametrize("kind", JUMPING)
@pytest.mark.parametrize("option", ["", ":correct=no", ":iterations=9"])
def test_the_certificate_of_a_block_that_jumps_says_the_error_or_warns(kind, option):
    for seed in range(3):
        expected, _ = gradients(kind, "backprop", seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", odenet.GradientWarning)
            found, certificate = gradients(kind, f"discrete-adjoint{option}", seed)
        off = error(found, expected)
        assert off <= max(3 * certificate, 1e-9) or said, (seed, off, certificate)


@pytest.mark.parametrize("kind", JUMPING)
def test_a_block_that_jumps_is_seen_to(kind):
    stack = ResidualStack([kind() for _ in range(3)], gradient="discrete-adjoint").double()
    stack(torch.randn(3, WIDTH, dtype=torch.float64)).sum().backward()
    assert all(map(jumps, stack.blocks))


@pytest.mark.parametrize("kind", JUMPING)
@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "checkpoint:bits=16"])
def test_methods_that_keep_states_are_right_for_blocks_that_jump(kind, gradient):
    expected, _ = gradients(kind, "backprop", 0)
    assert error(gradients(kind, gradient, 0)[0], expected) < 1e-4


# seeds of which a rounded state lies on the other side of a jump, and one of which none does
@pytest.mark.parametrize(("kind", "seed"), [(Rounded, 9), (Largest, 16), (Largest, 22), (Hard, 3), (Codebook, 0)])
def test_the_certificate_of_rounded_states_covers_jumps(kind, seed):
    """A part e of all jumps lies between states a part e apart: errors by chance, of the root of that part."""
    (expected, _), (found, certificate) = (gradients(kind, way, seed) for way in ("backprop", "checkpoint:bits=8"))
    assert error(found, expected) <= 3 * certificate < 0.1
    assert certificate > 3 * gradients(Block, "checkpoint:bits=8", seed)[1]


def test_a_block_that_does_not_jump_has_the_certificate_that_it_had():
    """The same arithmetic, with and without an operation that jumps where it changes nothing."""

    class Idle(Block):
        def jump(self, h):
            return h + 0 * h.round()

    (_, smooth), (_, jumping) = (gradients(kind, "discrete-adjoint", 0) for kind in (Block, Idle))
    assert smooth < 2e-3
    assert jumping > 3 * smooth


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.RReLU(), nn.LayerNorm(WIDTH), nn.GELU()])
def test_layers_that_draw_numbers_for_a_state_do_not_jump_by_it(layer):
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), layer, nn.Linear(WIDTH, WIDTH))
    ResidualStack([block], gradient="discrete-adjoint")(torch.randn(3, WIDTH)).sum().backward()
    assert not jumps(block)


class Normalised(nn.Module):
    """A block with a normalisation."""

    def __init__(self, norm):
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(12, 12), norm, nn.Linear(12, 12)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.inner(x))))


FEW = {
    "groups of 2": lambda: nn.GroupNorm(6, 12),
    "groups of 3": lambda: nn.GroupNorm(4, 12),
    "two rows": lambda: nn.BatchNorm1d(12),
}
MANY = {"groups of 6": lambda: nn.GroupNorm(2, 12), "a row": lambda: nn.LayerNorm(12)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", [*FEW, *MANY])
def test_a_normalisation_over_few_numbers_jumps(norm, seed):
    """What it divides by may be tiny: gradients were up to 20 times too large at certificates of 0.02 to 0.1."""
    torch.manual_seed(seed)
    blocks = [Normalised((FEW | MANY)[norm]()).double() for _ in range(8)]
    x = torch.randn(2 if norm == "two rows" else 8, 12, dtype=torch.float64)
    gradients = {}
    for gradient in ("backprop", "discrete-adjoint"):
        net = ResidualStack(blocks, gradient=gradient)
        net.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", odenet.GradientWarning)
            net(x).square().sum().backward()
        gradients[gradient] = torch.cat([p.grad.flatten() for p in net.parameters()])
    error = float((gradients["discrete-adjoint"] - gradients["backprop"]).norm() / gradients["backprop"].norm())
    certificate = net.stats.certificate
    assert certificate > error / 8
    assert certificate > 0.1 or error < 0.05
    assert jumps(blocks[0]) == (norm in FEW)
