"""Which layers of a model are converted: those that stand in a container and run when the model runs on an example."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from odenet import ConversionError
from odenet_jax.conversion.attached import is_attached, name_of
from odenet_jax.conversion.containers import Container
from odenet_jax.conversion.example import Sight, Watch, follows
from odenet_jax.field.block_state import marked_as
from odenet_jax.field.flax_modules import flax_nnx, is_flax
from odenet_jax.field.trees import difference


@dataclass(frozen=True)
class Selected:
    """Layers that are converted together.

    Args:
        places: their names, in order.
        adds: whether the model adds what they return to the state; else they do.
    """

    places: tuple[str, ...]
    adds: bool = False


def single_layers(lists: Sequence[Container], watches: Mapping[str, Watch]) -> list[Selected]:
    """Every layer that is called, each by itself: containers whose layers keep the state's shape, outer ones first;
    then the others, inner ones first.

    Raises:
        ConversionError: none is called.
    """
    called = {name: watch.sights for name, watch in watches.items() if watch.sights}
    keeping = [container for container in lists if any(_keeps(called.get(name, ())) for name in container.layers)]
    others = [container for container in reversed(lists) if container not in keeping]
    taken: list[Container] = []
    selected = []
    for container in (*keeping, *others):
        if any(container.holds(other) or other.holds(container) for other in taken):
            continue
        places = [name for name in container.layers if name in called]
        if places:
            taken.append(container)
            selected += [Selected((name,)) for name in places]
    if not selected:
        raise ConversionError(
            f"no layer of {', '.join(container.name for container in lists)} is called on the example",
            "layers that the model calls by layer(x, ...)",
        )
    return selected


def runs(lists: Sequence[Container], watches: Mapping[str, Watch], where: str | None) -> list[Selected]:
    """Two or more layers that are alike in a row, each x + f(x), or f(x) that the model is to add; outer lists first.

    Raises:
        ConversionError: there are none: the reasons.
    """
    selected: list[Selected] = []
    reasons: list[str] = []
    taken: list[Container] = []
    for container in lists:
        if any(other.holds(container) for other in taken):
            continue
        mine = _runs_of(container, watches, reasons)
        if mine:
            taken.append(container)
            selected += mine
    if not selected:
        several = "; ".join(dict.fromkeys(reasons))
        raise ConversionError(
            f"no two residual layers in a row in {where or 'the model'} ({several})",
            "layers that are alike, called in turn, each with the state that the one before it returned",
            "take gradient='checkpoint', which takes layers of every kind",
        )
    return selected


def _runs_of(container: Container, watches: Mapping[str, Watch], reasons: list[str]) -> list[Selected]:
    layers = [(name, layer, watches[name]) for name, layer in container.layers.items()]
    handed_on = any(follows(one[2], other[2]) for one, other in itertools.pairwise(layers))
    groups: list[list[tuple[str, Any, Watch]]] = [[]]
    for name, layer, watch in layers:
        why = _unfit(name, layer, watch, adds=not handed_on)
        if why is not None:
            reasons.append(why)
            groups.append([])
            continue
        last = groups[-1][-1] if groups[-1] else None
        apart = last and _apart(last, (name, layer, watch), handed_on)
        if apart:
            reasons.append(apart)
            groups.append([])
        groups[-1].append((name, layer, watch))
    reasons += [f"{group[0][0]} is residual, and alone" for group in groups if len(group) == 1]
    return [Selected(tuple(name for name, _, _ in group), not handed_on) for group in groups if len(group) > 1]


def _unfit(name: str, layer: Any, watch: Watch, *, adds: bool) -> str | None:
    """Why a layer cannot be one of a run; None where it can."""
    if is_attached(layer):
        return f"{name} is converted already: take odenet.unconvert(model) before"
    if not watch.sights:
        return f"{name_of(layer)} ({name}) is not called on the example"
    for sight in watch.sights:
        reason = sight.why or (None if adds else sight.residual)
        if reason is not None:
            return reason.given
    return None


def _apart(one: tuple[str, Any, Watch], other: tuple[str, Any, Watch], handed_on: bool) -> str | None:
    """Why two layers do not follow each other in a run."""
    if len(one[2].sights) != len(other[2].sights):
        return f"{other[0]} is called another number of times than {one[0]}"
    if handed_on and not follows(one[2], other[2]):
        return f"{other[0]} gets another state than {one[0]} returned"
    if one[1] is other[1] and is_flax(one[1]):
        return f"{other[0]} is the same module of flax.nnx as {one[0]}"
    if unlike := _unlike(one[1], other[1]):
        return f"{other[0]} is a {name_of(other[1])} of another structure than {one[0]}: {unlike}"
    kinds = [sight.x.kind if sight.x else None for sight in (one[2].sights[0], other[2].sights[0])]
    if kinds[0] is not None and kinds[0] != kinds[1]:
        return f"{other[0]} is called with a state of another shape than {one[0]}"
    return None


def _unlike(one: Any, other: Any) -> str | None:
    """What two layers differ in beside the values of their arrays; None for nothing."""
    if type(one) is type(other) and is_flax(one):
        (first, values), (second, others) = (flax_nnx().split(layer) for layer in (one, other))
        same = first == second and _shapes(values) == _shapes(others)
        return None if same else "in their variables or attributes"
    return difference(one, marked_as(other, one))


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _keeps(sights: Sequence[Sight]) -> bool:
    kinds = [[state.kind if state else None for state in (sight.x, sight.state)] for sight in sights]
    return any(before is not None and before == after for before, after in kinds)
