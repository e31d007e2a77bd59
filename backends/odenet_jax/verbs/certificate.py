"""The certificate of a backward pass, beside its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from odenet import InputError
from odenet.kit import require_finite_tree, shown, whole, yes_or_no
from odenet_jax.conversion.run import probing
from odenet_jax.field import trees as trees  # registers


def certified_value_and_grad(
    loss: Callable[..., Any], *, has_aux: bool = False, rows: int | None = None
) -> Callable[..., tuple[Any, Any, Array]]:
    """`eqx.filter_value_and_grad` with the reconstruction residual (`Stats.certificate`) as a third value.

        def loss(model, probe, x, y):
            return jnp.mean((model(x, probe=probe) - y) ** 2)

        value, gradients, certificate = certified_value_and_grad(loss)(model, x, y)

    The residual is known in the backward pass alone, where a function has no other way out than a derivative: the probe
    is a zero whose derivative it is. Derivatives add up: several solves that get the same probe give the sum of theirs.
    The layers of a model that `convert` made have a probe of shape () without being handed it.

    Args:
        loss: `loss(model, probe, *arguments, **named)` hands its probe to the solve in the model.
        has_aux: whether the loss returns a pair, of which only the first is differentiated.
        rows: the probe has this many entries, one for each row of a `jax.vmap`; None for a probe of shape ().

    Returns:
        A function of `(model, *arguments, **named)` to the value (with has_aux, the pair), the gradients of the
        model's inexact arrays, and the certificate, a scalar: the largest over rows.

    Raises:
        InputError: an argument that cannot be used.
    """

    if not callable(loss):
        raise InputError(f"loss={shown(loss)}, a {type(loss).__name__}", "loss(model, probe, *arguments, **named)")
    yes_or_no("has_aux", has_aux)
    if rows is not None:
        whole("rows", rows)

    @eqx.filter_value_and_grad(has_aux=has_aux)
    def probed(both: Any, *arguments: Any, **named: Any) -> Any:
        with probing(both[1]):
            return loss(*both, *arguments, **named)

    def value_and_grad(model: Any, *arguments: Any, **named: Any) -> tuple[Any, Any, Array]:
        require_finite_tree("the arguments", (model, arguments, named))
        probe = jnp.zeros(() if rows is None else (rows,))
        value, (gradients, residual) = probed((model, probe), *arguments, **named)
        return value, gradients, residual.max()

    return value_and_grad
