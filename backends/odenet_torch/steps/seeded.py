"""Random numbers of compiled steps that run again: functions of seeds that a graph is handed.

A compiler may evaluate the random operations of a graph in another order, and the graph of a backward pass evaluates
them in another one by nature, so that the state of a generator does not say what each of them draws. Here each is
made of a seed for its step, of the stage, and of its place among the operations of one evaluation, and is the same
wherever it is evaluated. The numbers are not those that the generator would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

_PLACES = 1 << 10  # of random operations in one evaluation, at most: later ones are left to the generator
_WORD = 0xFFFFFFFF
_aten: Any = torch.ops.aten


class _Drawing:
    """What operations draw from, while a graph is traced."""

    seed: Tensor | None = None
    rank = 0
    count = 0


_now = _Drawing()


def drawing(seed: Tensor, rank: int) -> Tensor:
    """The evaluation that follows draws from this seed.

    Args:
        seed: of the step, an int64 scalar.
        rank: of the evaluation in the step.
    """
    _now.seed, _now.rank, _now.count = seed, rank, 0
    return seed


torch.compiler.allow_in_graph(drawing)


def seeds(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """New ones, drawn from torch's generator of the device."""
    return torch.randint(1 << 62, (count,), device=device).unbind()


def seeded(graph: torch.fx.GraphModule, examples: list[Any]) -> torch.fx.GraphModule | None:
    """A graph whose random operations draw from the seeds that it marks; None where it marks none.

    Args:
        graph: from TorchDynamo.
        examples: of its inputs, without numbers.
    """
    if not any(node.op == "call_function" and node.target is drawing for node in graph.graph.nodes):
        return None
    try:
        return make_fx(graph, decomposition_table=_TABLE)(*examples)
    finally:
        _now.seed = None


def _mixed(word: Tensor) -> Tensor:
    """A hash of 32-bit words, held in int64; multipliers below 2^31 keep products within it."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x45D9F3B)):
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> 16)


def _words(shape: Any, device: torch.device) -> Tensor | None:
    """Uniform 32-bit words, one an entry; None where nothing is to be drawn from."""
    if _now.seed is None or _now.count >= _PLACES:
        return None
    place = _now.rank * _PLACES + _now.count
    _now.count += 1
    # first the seed alone: neighbouring seeds at neighbouring places are not to meet
    low = _mixed(_mixed((_now.seed & _WORD) ^ 0x5BD1E995) ^ place)
    high = _mixed(_mixed((_now.seed >> 32) ^ 0x1B873593) + place)
    entries = torch.arange(math.prod(shape), dtype=torch.int64, device=device)
    return _mixed(_mixed(entries ^ low) ^ high).reshape(shape)


def _uniform(shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Numbers in (0, 1), of the number type but for half precision."""
    words = _words(shape, device)
    if words is None:
        return NotImplemented
    # 24 of the bits: in float32 the largest is below 1
    return ((words >> 8).to(torch.float64 if dtype is torch.float64 else torch.float32) + 0.5) * 2.0**-24


def _normal(shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
    one, other = _uniform(shape, dtype, device), _uniform(shape, dtype, device)
    if one is NotImplemented or other is NotImplemented:
        return NotImplemented
    return (-2 * one.log()).sqrt() * (2 * math.pi * other).cos()


def _exponential(shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
    value = _uniform(shape, dtype, device)
    return value if value is NotImplemented else -value.log()


Numbers = Callable[[Any, torch.dtype, torch.device], Any]


def _like(numbers: Numbers, scaled: Callable[..., Any] = lambda value: value) -> Callable[..., Any]:
    """An operation on a tensor whose entries are replaced."""

    def replaced(x: Tensor, *more: Any, generator: Any = None, **options: Any) -> Any:
        kind, device = options.get("dtype") or x.dtype, options.get("device") or x.device
        if generator is not None or not kind.is_floating_point:
            return NotImplemented
        value = numbers(x.shape, kind, device)
        return value if value is NotImplemented else scaled(value, *more).to(kind)

    return replaced


def _within(replaced: Callable[..., Any]) -> Callable[..., Any]:
    """The same, written into the tensor."""

    def written(x: Tensor, *more: Any, **options: Any) -> Any:
        value = replaced(x, *more, **options)
        return value if value is NotImplemented else x.copy_(value)

    return written


def _new(numbers: Numbers) -> Callable[..., Any]:
    """An operation that makes a tensor of a shape."""

    def new(shape: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        kind = dtype or torch.get_default_dtype()
        value = numbers(shape, kind, torch.device(device or "cpu")) if kind.is_floating_point else NotImplemented
        return value if value is NotImplemented else value.to(kind)

    return new


def _true(x: Tensor, chance: Any = 0.5, *, generator: Any = None) -> Any:
    value = NotImplemented if generator is not None else _uniform(x.shape, torch.float32, x.device)
    return value if value is NotImplemented else (value < chance).to(x.dtype)


def _dropped(x: Tensor, chance: float, train: bool | None) -> Any:
    if train is False or chance == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = _uniform(x.shape, torch.float32, x.device)
    if kept is NotImplemented:
        return NotImplemented
    kept = kept < 1 - chance
    return x * kept * (1 / (1 - chance) if chance < 1 else 0.0), kept


def _whole(x: Tensor, *ends: int, **options: Any) -> Any:
    """Whole numbers from the first end, or 0, to below the last."""
    low, high = (0, *ends)[-2:]
    if high - low > 1 << 24 or (value := _uniform(x.shape, torch.float64, x.device)) is NotImplemented:
        return NotImplemented
    return (low + (value * (high - low)).floor()).to(options.get("dtype") or x.dtype)


_between = _like(_uniform, lambda value, low=0.0, high=1.0: low + (high - low) * value)
_around = _like(_normal, lambda value, mean=0.0, spread=1.0: mean + spread * value)
_TABLE: dict[Any, Callable[..., Any]] = {
    _aten.bernoulli.default: lambda x, **options: _true(x, x, **options),
    _aten.bernoulli.p: _true,
    _aten.bernoulli_.float: _within(_true),
    _aten.bernoulli_.Tensor: _within(_true),
    _aten.native_dropout.default: _dropped,
    _aten.rand.default: _new(_uniform),
    _aten.randn.default: _new(_normal),
    _aten.rand_like.default: _like(_uniform),
    _aten.randn_like.default: _like(_normal),
    _aten.uniform_.default: _within(_between),
    _aten.normal_.default: _within(_around),
    _aten.exponential_.default: _within(_like(_exponential, lambda value, rate=1.0: value / rate)),
    _aten.randint_like.default: _whole,
    _aten.randint_like.low_dtype: _whole,
}
"""By operation. What is not among them is left to the generator, and such a graph is refused (`require_repeatable`)."""
