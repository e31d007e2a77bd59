"""Graphs that are called without torch's comparison of what they were compiled for, where it is known to hold.

That comparison (the guards) takes as long as the arithmetic of small strides. In each pass the first stride of a graph
is compared. Another stride of the pass goes to the same compiled code directly if it was compared in an earlier pass,
and all that it alone has, modules, attributes and parameters, is since then what it was.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from odenet_torch.field.wiring import Wiring, WiringContents

_OUTPUT, _INPUT, _CONSTANT = "output", "input", "constant"
_SHAPE, _KIND, _DEVICE = operator.attrgetter("shape"), operator.attrgetter("dtype"), operator.attrgetter("device")


class Shortcut:
    """A call of compiled code: which of the tensors at hand it takes, and where what it returns belongs.

    Args:
        code: it.
        places: of its arguments among the tensors at hand.
        value: the function's value, with a place in the stead of each tensor.
    """

    def __init__(self, code: Callable[..., Any], places: list[int], value: Any) -> None:
        self.code, self.places, self.value = code, places, value

    @classmethod
    def of(
        cls, code: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], at_hand: list[Tensor], value: Any
    ) -> Shortcut | None:
        """That of a call that was just made; None where it does anything else than to hand on tensors.

        Args:
            code: what was called.
            inputs, outputs: of it.
            at_hand: the tensors that the function was called with.
            value: of the function.
        """
        known = {id(tensor): place for place, tensor in enumerate(at_hand)}
        returned = {id(x): place for place, x in enumerate(outputs)}
        # where two are one tensor, it is not known which of them is meant
        if len(known) < len(at_hand) or len(returned) < len(outputs) or not known.keys() >= set(map(id, inputs)):
            return None
        try:
            return cls(code, [known[id(x)] for x in inputs], _placed(value, returned))
        except LookupError:
            return None

    def __call__(self, at_hand: list[Tensor]) -> Any:
        """The function's value for other tensors."""
        outputs = self.code(*[at_hand[place] for place in self.places])
        return _filled(self.value, outputs)


def _placed(value: Any, returned: dict[int, int]) -> Any:
    """Places in the stead of tensors. Raises LookupError for one that the compiled code has not returned."""
    if value is None:
        return None
    return returned[id(value)] if isinstance(value, Tensor) else (type(value), [_placed(x, returned) for x in value])


def _filled(value: Any, outputs: Sequence[Any]) -> Any:
    if type(value) is int:
        return outputs[value]
    return None if value is None else value[0]([_filled(x, outputs) for x in value[1]])


def tensors_of(arguments: Any, at_hand: list[Tensor]) -> Any:
    """Adds the tensors in nested tuples; returns how these look."""
    if isinstance(arguments, Tensor):
        at_hand.append(arguments)
        return 0
    return None if arguments is None else tuple([tensors_of(x, at_hand) for x in arguments])


class Shortcuts:
    """Those of a pass.

    Args:
        wiring: of what the strides call.
        looked: whether it has just been seen that all stands where it stood.
    """

    def __init__(self, wiring: Wiring, *, looked: bool) -> None:
        contents = wiring.contents
        if contents is None or not (looked or contents.stands()):
            contents = wiring.contents = WiringContents(wiring)
        tensors = [*wiring.parameters, *wiring.buffers]
        now = (
            contents.modes(),
            [*map(_SHAPE, tensors)],
            [*map(_KIND, tensors)],
            [*map(_DEVICE, tensors)],
            [*map(Tensor.stride, tensors)],
        )
        if contents.compared is None or contents.compared[0] != now:
            contents.compared = now, {}
        self.known: dict[Any, Shortcut] = contents.compared[1]
        self.compared: dict[int, Any] = {}
        """By `id` of a graph, the code that a stride of this pass was compared for."""
