"""Whole numbers for the way back: rounding that gradients go straight through, and a few bits a number in bytes."""

from __future__ import annotations

import torch
from torch import Tensor


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


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers from 0 to below 2^bits, at most 8 bits, as bytes with as many of them as fit."""
    each = width(bits)
    flat = (torch.view_as_real(numbers) if numbers.is_complex() else numbers).to(torch.uint8).flatten()
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % (8 // each))).unflatten(0, (-1, 8 // each))
    found = rows[:, 0].clone()
    for place in range(1, 8 // each):
        found |= rows[:, place] << (place * each)
    return found


def unpacked(found: Tensor, bits: int, like: Tensor) -> Tensor:
    """The numbers of `packed`, in the shape and number type of a leaf of the state."""
    each, real = width(bits), torch.view_as_real(like) if like.is_complex() else like
    rows = torch.stack([(found >> (place * each)) & (2**each - 1) for place in range(8 // each)], 1)
    numbers = rows.flatten()[: real.numel()].view(real.shape).to(real.dtype)
    return torch.view_as_complex(numbers) if like.is_complex() else numbers


def width(bits: int) -> int:
    """The bits that a number takes in a byte, so that none is in two bytes."""
    return next(each for each in (1, 2, 4, 8) if each >= bits)
