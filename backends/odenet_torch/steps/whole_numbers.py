"""Whole numbers for the way back: rounding that gradients go straight through, and a few bits a number in bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odenet.kit import bits_in_byte


def whole(y: Tensor, shift: float = 0.0) -> Tensor:
    """The whole number next to y + shift, of real and imaginary part."""
    if y.is_complex():
        return torch.view_as_complex(whole(torch.view_as_real(y.resolve_conj()), shift))
    return (y + shift if shift else y).round()


def straight_through(y: Tensor, shift: float = 0.0) -> Tensor:
    """The same, with the derivative 1 by y, in forward mode, too.

    The difference of y and a whole number next to it is a number of y's type, so that adding it to y rounds nothing.
    """
    return y + (whole(y, shift) - y).detach()


def of_samples(number: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """`number` of 0, 1, ... along the first axis of a leaf, to be multiplied by it; of 0 where it has no axes."""
    samples = torch.arange(y.shape[0] if y.ndim else 1, device=y.device)
    return number(samples).to(y.dtype).reshape([-1] + [1] * (y.ndim - 1) if y.ndim else [])


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers from 0 to below 2^bits, at most 8 bits, as bytes with as many of them as fit."""
    size = bits_in_byte(bits)
    flat = (torch.view_as_real(numbers) if numbers.is_complex() else numbers).to(torch.uint8).flatten()
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % (8 // size))).unflatten(0, (-1, 8 // size))
    octets = rows[:, 0].clone()
    for place in range(1, 8 // size):
        octets |= rows[:, place] << (place * size)
    return octets


def unpacked(octets: Tensor, bits: int, like: Tensor) -> Tensor:
    """The numbers of `packed`, in the shape and number type of a leaf of the state."""
    size, real = bits_in_byte(bits), torch.view_as_real(like) if like.is_complex() else like
    rows = torch.stack([(octets >> (place * size)) & (2**size - 1) for place in range(8 // size)], 1)
    numbers = rows.flatten()[: real.numel()].view(real.shape).to(real.dtype)
    return torch.view_as_complex(numbers) if like.is_complex() else numbers
