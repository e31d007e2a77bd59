"""Whole numbers for the way back: rounding that gradients go straight through, and a few bits a number in bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet.kit import bits_in_byte


def whole(y: Array, shift: float = 0.0) -> Array:
    """The whole number next to y + shift, of real and imaginary part."""
    if jnp.iscomplexobj(y):
        return lax.complex(whole(y.real, shift), whole(y.imag, shift))
    return jnp.round(y + shift if shift else y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def straight_through(y: Array, shift: float = 0.0) -> Array:
    """The same, with the derivative 1 by y."""
    return whole(y, shift)


@straight_through.defjvp
def _as_if_not_rounded(shift: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return straight_through(*primals, shift), tangents[0]


def of_samples(number: Callable[[Array], Array], y: Array) -> Array:
    """`number` of 0, 1, ... along the first axis of a leaf, to be multiplied by it; of 0 where it has no axes."""
    samples = jnp.arange(y.shape[0] if y.ndim else 1, dtype=jnp.int32)
    return number(samples).astype(y.dtype).reshape([-1] + [1] * (y.ndim - 1) if y.ndim else [])


def packed(numbers: Array, bits: int) -> Array:
    """Whole numbers from 0 to below 2^bits, at most 8 bits, as bytes with as many of them as fit."""
    size = bits_in_byte(bits)
    parts = jnp.stack([numbers.real, numbers.imag], -1) if jnp.iscomplexobj(numbers) else numbers
    flat = parts.astype(jnp.uint8).reshape(-1)
    rows = jnp.pad(flat, (0, -flat.size % (8 // size))).reshape(-1, 8 // size)
    octets = rows[:, 0]
    for place in range(1, 8 // size):
        octets = octets | (rows[:, place] << (place * size))
    return octets


def unpacked(octets: Array, bits: int, like: Array) -> Array:
    """The numbers of `packed`, in the shape and number type of a leaf of the state."""
    size, shape = bits_in_byte(bits), (*like.shape, 2) if jnp.iscomplexobj(like) else like.shape
    rows = jnp.stack([(octets >> (place * size)) & (2**size - 1) for place in range(8 // size)], 1)
    numbers = rows.reshape(-1)[: math.prod(shape)].reshape(shape).astype(like.real.dtype)
    return lax.complex(numbers[..., 0], numbers[..., 1]) if jnp.iscomplexobj(like) else numbers
