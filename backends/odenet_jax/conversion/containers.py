"""The lists of layers in a model, by the names of their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax

from odenet import ConversionError
from odenet_jax.conversion.attached import Place, attach, is_attached
from odenet_jax.field.flax_modules import flax_nnx, is_flax


@dataclass(frozen=True)
class Container:
    """A list, tuple or dictionary of layers.

    Args:
        name: its place in the model, as in "encoder.blocks".
        layers: by place, in order.
    """

    name: str
    layers: Mapping[str, Any]

    def holds(self, other: Container) -> bool:
        """Whether another one is inside of a layer of this one."""
        return any(other.name.startswith(f"{place}.") for place in self.layers)


def containers(model: Any, where: str | None) -> list[Container]:
    """The containers of two or more layers in a model, outer ones first.

    Args:
        model: of equinox or flax.nnx.
        where: the name of a part of the model, as in "encoder.blocks"; None for all of it.

    Raises:
        ConversionError: no such part, or none in it.
    """
    names = [name for name, _ in _nodes("", model)]
    if where is not None and where not in names:
        known = [container.name for container in containers(model, None)]
        raise ConversionError(
            f"no part of the model is {where!r}", f"a list of layers, such as {', '.join(known[:12])}"
        )
    with_layers = []
    for name, node in _nodes("", model):
        inside = where is None or name == where or name.startswith(f"{where}.")
        if inside and not _is_layer(node) and len(layers := dict(_layers(name, node))) > 1:
            with_layers.append(Container(name, layers))
    if not with_layers:
        raise ConversionError(
            f"no list of two or more layers in {where or 'the model'}",
            "a list, tuple or dictionary of modules of equinox or flax.nnx that the model calls in turn",
            "layers whose arrays are stacked, for jax.lax.scan, are a ResidualStack: ask for odenet_jax.ResidualStack",
        )
    return with_layers


def with_places(model: Any, places: Mapping[str, Place]) -> Any:
    """The model with some of its layers attached, by the names of their places: another one of equinox, or of flax.nnx
    itself, changed in place."""
    if is_flax(model):
        for name, node in list(_nodes("", model)):
            if name in places and not is_attached(node):
                attach(node, places[name])
        return model
    layers = {id(node) for name, node in _nodes("", model) if name in places}

    def placed(name: str, node: Any) -> Any:
        def inner(path: Any, child: Any) -> Any:
            return placed(".".join(filter(None, (name, _joined(path)))), child) if id(child) in layers else child

        copy = jax.tree_util.tree_map_with_path(
            inner, node, is_leaf=lambda part: part is not node and id(part) in layers
        )
        return attach(copy, places[name]) if name in places else copy

    return placed("", model)


def _nodes(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """All nodes of a tree with their names, outer ones first."""
    yield name, node
    for key, child in _children(node):
        yield from _nodes(f"{name}.{key}" if name else key, child)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    for path, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)[0]:
        if path and child is not node:
            yield _joined(path), child


def _layers(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    for key, child in _children(node):
        if _is_layer(child):
            yield f"{name}.{key}" if name else key, child


def _is_layer(node: Any) -> bool:
    """Whether it is a module that is called and holds arrays."""
    nnx = flax_nnx()
    lists = () if nnx is None else tuple(getattr(nnx, name) for name in ("List", "Dict") if hasattr(nnx, name))
    module = (isinstance(node, eqx.Module) or is_flax(node)) and not isinstance(node, lists)
    return module and callable(node) and any(eqx.is_array(leaf) for leaf in jax.tree.leaves(node))


def _joined(path: Any) -> str:
    """A path as attribute names, keys and indices with points between."""
    parts = ("name", "key", "idx")  # JAX's own joining of them came after the oldest version that is supported
    return ".".join(str(next(getattr(key, part) for part in parts if hasattr(key, part))) for key in path)
