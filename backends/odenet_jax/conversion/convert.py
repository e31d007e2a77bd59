"""`convert`: layers inside a model that somebody else wrote are trained by a gradient method of this library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from odenet import (
    Auto,
    Backprop,
    Checkpoint,
    ConversionError,
    Gradient,
    GradientName,
    InputError,
    OdenetError,
    SolverName,
    UnsupportedError,
)
from odenet.kit import AnySolver, array_of_numbers, instance, require, require_finite_tree, shown, within
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_jax._entry import backend
from odenet_jax.conversion.attached import Place, all_detached, is_attached
from odenet_jax.conversion.containers import containers, with_places
from odenet_jax.conversion.example import check_unchanged, outputs, watched
from odenet_jax.conversion.run import Alone, Member, Run
from odenet_jax.conversion.selection import Selected, runs, single_layers
from odenet_jax.field.flax_modules import is_flax
from odenet_jax.field.programs import require_known

Model = TypeVar("Model")


def convert(
    model: Model,
    where: str | None = None,
    *,
    example: Any,
    solver: SolverName | AnySolver = "euler",
    gradient: GradientName | Gradient = "checkpoint",
    along: Literal["piecewise", "linear"] = "piecewise",
    tolerance: float = 1e-6,
    call: Callable[..., Any] | None = None,
) -> Model:
    """Train layers that somebody else wrote by a gradient method of this library; the model's function stays.

    - "checkpoint" (exact) takes any layers of equinox or flax.nnx in a list, tuple or dictionary: each still computes
      its own output, and is evaluated again in the backward pass. "backprop" changes nothing.
    - Every other method, and every other solver than Euler's, takes runs of two or more layers in a row that are alike
      and return their input plus something of the same shape; or return something that the model adds to their input.
      The last layer of a run computes all of it as a `ResidualStack`, with steps of h = 1. A layer's keys, state of
      equinox (`eqx.nn.State`), running statistics and counts of random numbers (flax.nnx) are those of the plain model,
      and each layer counts once; a loss that reads the new ones is refused. States between the layers do not exist,
      and reading one is refused.

    Parameters have the same names and are the same leaves in the same order: optimizers of optax and serialisation fit.
    The weights of a run are stacked in each call, which takes one more copy of them.

    A model of equinox is left as it is, and another one returned; one of flax.nnx is changed in place. Before it
    returns, the model runs on the example as it was and as it is, compiled.

    Args:
        model: a module of equinox, or of flax.nnx.
        where: the name of a part of the model to look in, such as "encoder.layers"; None looks everywhere.
        example: what to call the model with: an array, a tuple of positional arguments, or a mapping of keyword
            arguments. A small batch does.
        solver: "euler" is the model itself. Another one makes another network of the same weights.
        gradient: a name or record. `certified_value_and_grad` has the certificate of one that has it.
        along: as for `ResidualStack`.
        tolerance: the largest difference of an output, relative to its largest entry; 8 roundings of its number type if
            that is more.
        call: `call(model, *example)` for a model that is not called as `model(*example)`, such as one under
            `jax.vmap(model, axis_name="batch")`.

    Returns:
        The model.

    Raises:
        ConversionError: no such part; no layers that can be converted, with reasons (an activation or norm after the
            addition, another shape, layers of different structure, a value that leaves a layer beside its state ...);
            outputs that differ. UnsupportedError: a gradient that the solver does not go with, or "auto"; a
            call inside of `jax.jit` or another transformation.
    """
    if not callable(model):
        raise InputError(f"a model that is a {type(model).__name__}", "a module of equinox or of flax.nnx")
    within("tolerance", tolerance, 0.0, of="convert")
    for name, value in (("where", where), ("along", along)):
        instance(name, value, (str, type(None)), "a text, or None")
    if call is not None and not callable(call):
        raise InputError(f"call={shown(call)}, a {type(call).__name__}", "call(model, *example), or None")
    require_known("convert", (model, example))
    _require_example(model if call is None else None, example)
    scheme, method = solver_named(solver), gradient_named(gradient)
    if isinstance(method, Auto):
        raise UnsupportedError(
            "gradient='auto' in odenet_jax.convert",
            "a method by name",
            "odenet.plan on a ResidualStack of the layers says which; 'checkpoint' is exact for any layers",
        )
    require(backend, scheme, method)
    itself = scheme.label == "euler" and along == "piecewise"
    alone = itself and method in (Backprop(), Checkpoint())
    caller: Any = call if call is not None else (lambda model, *arguments, **named: model(*arguments, **named))
    lists = containers(model, where)
    names = [name for container in lists for name in container.layers]
    attached = [name for container in lists for name, layer in container.layers.items() if is_attached(layer)]
    if attached:
        raise ConversionError(f"{attached[0]} is converted already", "", "take odenet.unconvert(model) before")
    watches, expected = watched(model, names, not alone, caller, example)
    places: dict[str, Place] = {}
    for selected in single_layers(lists, watches) if alone else runs(lists, watches, where):
        places |= _places(selected, alone, scheme, method, along)
    del watches
    converted = with_places(model, places)
    try:
        now = _tried(converted, caller, example)
        if itself:
            check_unchanged(expected, now, tolerance)
    except BaseException:
        if is_flax(model):
            all_detached(model)
        raise
    return converted


def _require_example(model: Any, example: Any) -> None:
    """Raises InputError for what is no example: words, objects, or not what the model (unless None) is called with."""
    for leaf in jax.tree.leaves(example):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise InputError(f"an example of {leaf}", "arrays of numbers", "jnp.ones of its shape")
        if isinstance(leaf, np.ndarray | np.generic):
            array_of_numbers("example", np.asarray(leaf))
    named = example if isinstance(example, Mapping) else {}
    arguments = example if isinstance(example, tuple) else () if isinstance(example, Mapping) else (example,)
    try:
        if model is not None:
            inspect.signature(model).bind(*arguments, **named)
    except ValueError:  # callables of an extension module may have no signature
        return
    except TypeError as error:
        raise InputError(
            f"an example that a {type(model).__name__} cannot be called with ({error})",
            "an array, all positional arguments in a tuple, or keyword arguments in a mapping",
        ) from None


def unconvert(model: Model) -> Model:
    """The model with its own layers again, with the parameters as they are trained by now.

    Args:
        model: one that was converted, or parts of which were.

    Returns:
        Another model of equinox; or the same one of flax.nnx, changed in place. One that was not converted is returned
        as it is.
    """
    if not callable(model):
        raise InputError(f"a model that is a {type(model).__name__}", "a module of equinox or of flax.nnx")
    require_finite_tree("the model", model)
    return all_detached(model)


def _places(
    selected: Selected, alone: bool, solver: AnySolver, gradient: Gradient, along: Literal["piecewise", "linear"]
) -> dict[str, Place]:
    if alone:
        return dict.fromkeys(selected.places, Alone(isinstance(gradient, Checkpoint)))
    run = Run(len(selected.places), selected.adds, solver, gradient, along)
    return {name: Member(run, index) for index, name in enumerate(selected.places)}


def _tried(model: Any, caller: Callable[..., Any], example: Any) -> Any:
    """What comes out of the converted model.

    Raises:
        ConversionError: it does something with what stands for a state that cannot be done.
    """
    try:
        return outputs(model, caller, example)
    except OdenetError:
        raise
    except TypeError as error:
        raise ConversionError(
            f"the model does something with a state between two layers ({error})",
            "layers called in turn, each with the state that the one before it returned",
            "take gradient='checkpoint', with which each layer computes its own output; or put a jax.vmap or jax.jit "
            "of single layers around all of them",
        ) from error
