"""A layer of a converted model: the same module, of a subclass of its class, whose calls go to where it stands."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import equinox as eqx
import jax

from odenet_jax.field.flax_modules import flax_nnx, is_flax

Named = Mapping[str, Any]


class Place(Protocol):
    """Where a layer stands. Its equals are equal to JAX, too."""

    def call(self, layer: Any, arguments: tuple[Any, ...], named: Named) -> Any:
        """What a call of the layer returns."""
        ...


def attach(layer: Any, place: Place) -> Any:
    """The layer, its calls handed to a place: another one of equinox, or of flax.nnx itself, changed in place."""
    base = type(layer)
    if is_flax(layer):
        object.__setattr__(layer, "__class__", _subclass(base))  # flax would make it one of its attributes
        layer.odenet_place = place
        return layer
    attached = object.__new__(_subclass(base))
    vars(attached).update(vars(layer), odenet_place=place)
    return attached


def detach(layer: Any) -> Any:
    """The plain layer: another one of equinox, or of flax.nnx itself, changed in place."""
    base = type(layer).odenet_base
    if is_flax(layer):
        del layer.odenet_place
        object.__setattr__(layer, "__class__", base)
        return layer
    return plain_copy(layer)


def is_attached(node: Any) -> bool:
    """Whether it is a layer of a converted model."""
    return hasattr(type(node), "odenet_base")


def plain_call(layer: Any, *arguments: Any, **named: Any) -> Any:
    """The value of the layer's own code."""
    return type(layer).odenet_base.__call__(layer, *arguments, **named)


def plain_class(layer: Any) -> Any:
    """The layer's own class."""
    return getattr(type(layer), "odenet_base", type(layer))


def name_of(layer: Any) -> str:
    """The name of the layer's own class."""
    return plain_class(layer).__name__


def all_detached(model: Any) -> Any:
    """A model with its own layers: another one of equinox, or of flax.nnx itself, changed in place."""
    if not is_flax(model):
        return jax.tree.map(
            lambda node: all_detached(detach(node)) if is_attached(node) else node, model, is_leaf=is_attached
        )
    for node in [model, *(node for _, node in _flax_children(model))]:
        if is_attached(node):
            detach(node)
    return model


def _flax_children(module: Any) -> list[tuple[Any, Any]]:
    return [(path, node) for path, node in flax_nnx().iter_graph(module) if is_flax(node)]


@functools.cache
def _subclass(base: type) -> Any:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.odenet_place.call(self, arguments, named)

    inner: dict[str, Any] = {
        "__call__": functools.update_wrapper(call, base.__call__, ("__doc__",), ()),
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce__": lambda self: (_again, _parts(self)),
        "odenet_base": base,
    }
    if issubclass(base, eqx.Module):
        inner["__annotations__"] = {"odenet_place": Any}
        inner["odenet_place"] = eqx.field(static=True, default=None, repr=False)
    metaclass: Any = type(base)
    return metaclass(f"Converted{base.__name__}", (base,), inner)


def _parts(layer: Any) -> tuple[Any, Any]:
    """The plain layer and its place, for pickle and copy."""
    return plain_copy(layer), layer.odenet_place


def plain_copy(layer: Any) -> Any:
    """A copy of its own class, without its place, that holds the same arrays and variables."""
    plain = object.__new__(type(layer).odenet_base)
    vars(plain).update({name: value for name, value in vars(layer).items() if name != "odenet_place"})
    return plain


def _again(layer: Any, place: Place) -> Any:
    return attach(layer, place)
