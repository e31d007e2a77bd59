"""Layers that run again as they ran but for values that are others in each pass: settled for a checkpoint, under which
the gradient by such a value is autograd's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from odenet_torch.field.block_contents import BlockContents, StackContents
from odenet_torch.field.called_modules import indifferent
from odenet_torch.field.knowledge import Knowledge, knowledge
from odenet_torch.field.passing_values import FoundValues, PassingValues
from odenet_torch.field.places import MISSING, Location
from odenet_torch.field.replay import Replay
from odenet_torch.field.settled import contents
from odenet_torch.field.surroundings import Surroundings, differences


def passing_contents(layer: nn.Module) -> tuple[FoundValues | None, StackContents | None]:
    """The passing values of a settled layer as they are now, and what else it consists of; None where it is not."""
    known = contents((layer,), passing=True)
    if known is None:
        return None, None
    passing = known.blocks[0][1].passing
    assert passing is not None
    values = passing.found()
    return values, None if values is None else known


def settle_passing(layer: nn.Module, replay: Replay, late: bool) -> None:
    """After a careful pass of a layer: if that has shown it to be settled for a checkpoint, it is known from now on.

    Args:
        layer: it.
        replay: of the pass.
        late: whether it is to run to its end.
    """
    sides, memo = replay.sides, knowledge(layer)
    around = sides.around.get(id(layer))
    if memo is None or around is None or around.wrote or around.reach.generators:
        return
    if replay.noticed or any(tensors for _, before in sides.caches for tensors in before.values()):
        return
    modules = tuple(layer.modules())
    if any("parametrizations" in module._modules for module in modules):
        return
    slots = _slots(layer, around, memo)
    if slots is None or (not slots and layer.training in memo.settled):
        return
    moving = {id(owner): {*owner._buffers} for owner in modules if indifferent(owner)}
    for changed in replay.buffers.values():
        for (owner, key), _ in changed:
            moving.setdefault(id(owner), set()).add(key)
    buffers = [
        (module._buffers, key, buffer)
        for module in modules
        for key, buffer in module._buffers.items()
        if buffer is not None and key in moving.get(id(module), ())
    ]
    every = [x for module in modules for x in module._buffers.values() if x is not None]
    if any(x.requires_grad for x in every) or not all(type(x) is Tensor for x in every):
        return
    names = {id(module): name for name, module in layer.named_modules()}
    reached = around.reach.without_slots(
        slots,
        [(f".{names[id(module)]}", module._buffers) for module in modules if module._buffers],
        {id(buffer) for *_, buffer in buffers},
    )
    parameters = [(m._parameters, key, x) for m in modules for key, x in m._parameters.items() if x is not None]
    own = {id(x) for *_, x in parameters}
    if any(isinstance(x, Tensor) and x.requires_grad and id(x) not in own for _, x in reached.watched):
        return
    if not all(x.is_leaf for *_, x in parameters):
        return
    places = {
        (id(place), key) for place in reached.places for key in place.contents() if (id(place.entries), key) in slots
    }
    places |= {(id(place), key) for place in reached.places for owner, key, _ in buffers if place.entries is owner}
    passing = PassingValues([*slots.values()], buffers, places, late)
    memo.passing[layer.training] = BlockContents.of(reached, layer, modules, parameters, passing)
    if slots:
        memo.reach = None  # it holds what stood in them, with its graph


def _slots(
    layer: nn.Module, around: Surroundings, memo: Knowledge
) -> dict[tuple[int, Any], tuple[dict[Any, Any], Any]] | None:
    """The entries of dicts that hold another tensor in each pass, by `id` of the dict and key.

    None where the pass has changed anything else.
    """
    places = {id(place): place for place in around.reach.places}
    slots: list[tuple[Location, Any]] = [(places[place], key) for place, key in around.own]
    if not all(_passes(place.entries, key) for place, key in slots):
        return None
    # what depends on what has a gradient, and was put there by somebody else, is another one in the next pass
    slots += [
        (place, key)
        for place in around.reach.places
        for key, x in place.contents().items()
        if type(x) is Tensor and not x.is_leaf and _passes(place.entries, key)
    ]
    entries = [(place.entries, key) for place, key in slots]
    for known in (memo.passing.get(layer.training), memo.settled.get(layer.training)):
        if known is None:
            continue
        if known.passing is not None:
            entries += [slot for slot in known.passing.slots if _passes(*slot)]
        entries += [
            (place.entries, key)
            for place, key, before, now in differences(known.reach.places, known.reach.contents)
            if type(before) is type(now) is Tensor and place.entries is not None
        ]
    return {(id(entries), key): (entries, key) for entries, key in entries if entries is not None}


def _passes(entries: dict[Any, Any] | None, key: Any) -> bool:
    return entries is not None and type(entries.get(key, MISSING)) in (Tensor, type(None))
