"""The residual branches of a layer that somebody else wrote: `x1 = x + g1(x)`, `x2 = x1 + g2(x1)`, and so on.

torch.fx traces the layer's own forward, with its children as leaves, for one way of calling it: which arguments are
given, and what the plain ones (None, numbers, flags) are. The graph is cut at the sums that all later nodes pass
through, so that a pre-norm transformer layer is two branches. A layer that cannot be traced, or not without loss, is
one branch, observed while it runs (`sums`).

Over 250 lines: one graph is traced, cut at its sums and put together again.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from odenet import InputError
from odenet.kit import tree_flatten
from odenet_torch.conversion.sums import added
from odenet_torch.field.surroundings import differences, put_back, reach

Function = Callable[[nn.Module, Tensor, Sequence[Any]], Tensor]
"""`g(branch, x, leaves)`: `branch` holds the children and parameters, `leaves` are those of all other arguments."""

PLAIN = (bool, int, float, str)
"""What a traced forward may decide by; None beside these."""

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_ADDING_METHODS = {"add", "add_"}
_IN_PLACE = {*(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "pow")), operator.setitem}


@dataclass(frozen=True)
class Branch:
    """One residual branch of a layer.

    Args:
        function: its value.
        names: of the layer's children, parameters and buffers that it reads.
        start: the child that is called first in it, after all of the branches before; None where that is not known.
    """

    function: Function
    names: frozenset[str]
    start: str | None = None


def traced(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Branch, ...] | None:
    """The branches of a layer that is called with these arguments beside its state; None where it cannot be traced.

    Raises:
        InputError: traced, and no sum of its input and something: the reason.
    """
    graph = _trace(layer, args, kwargs)
    if graph is None:
        return None
    for node in list(graph.nodes):
        if node.op == "call_module" and _does_nothing(layer.get_submodule(_inside(node.target))):
            node.replace_all_uses_with(node.args[0])
    x, extras = [node for node in graph.nodes if node.op == "placeholder"]
    (out,) = [node.args[0] for node in graph.nodes if node.op == "output"]
    out = out[0] if isinstance(out, (tuple, list)) and out else out
    branches: list[Branch] = []
    while out is not x:
        state, rest = _cut(graph, x, out, layer, last=not branches)
        branches.append(_branch(layer, graph, state, extras, rest))
        out = state
    return tuple(reversed(branches))


def whole(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Branch, ...]:
    """All that a layer adds to its input as one branch, whatever its code is."""
    _, unflatten = tree_flatten((args, kwargs))

    def function(branch: nn.Module, x: Tensor, leaves: Sequence[Any]) -> Tensor:
        args, kwargs = unflatten(leaves)
        return added(layer, x, *args, **kwargs)

    return (Branch(function, frozenset((*layer._modules, *layer._parameters, *layer._buffers))),)


def _encoder_layer(
    layer: nn.TransformerEncoderLayer,
    x: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """torch's layer without its fast path, which is one fused operation and looks at what it is given."""
    if not layer.norm_first:
        return layer.norm2(x)  # as the layer ends
    x = x + layer._sa_block(layer.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
    return x + layer._ff_block(layer.norm2(x))


_FORWARDS: dict[Any, Callable[..., Any]] = {nn.TransformerEncoderLayer.forward: _encoder_layer}


class _Call(nn.Module):
    """One way of calling a layer: a function of its state and the other arguments' leaves that are not plain."""

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.arguments = tree_flatten((args, kwargs))

    def forward(self, x: Any, leaves: Any) -> Any:
        plain_leaves, unflatten = self.arguments
        args, kwargs = unflatten([leaf if type(leaf) in PLAIN else leaves[i] for i, leaf in enumerate(plain_leaves)])
        # not by calling the layer: its hooks are no part of it
        forward = vars(self.layer).get("forward")
        if forward is not None:
            return forward(x, *args, **kwargs)
        forward = getattr(type(self.layer), "_odenet_base", type(self.layer)).forward
        return _FORWARDS.get(forward, forward)(self.layer, x, *args, **kwargs)


class _Tracer(fx.Tracer):
    """The layer itself is traced, its children are not; buffers as parameters are, so that nothing is written to them
    and nothing decided by what is in them."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != "layer"

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Of a tensor, no attribute of which (as `data`) can be set: the graph would not have it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise TypeError(f"{name} of a tensor is set")
        super().__setattr__(name, value)


def _trace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph | None:
    """The layer's graph; None where it cannot be traced, or where a trace would freeze what a call decides."""
    around = reach(layer)  # first: what is known of a layer stands among its attributes
    before, state, of_python = dict(vars(layer)), torch.get_rng_state(), random.getstate()
    tensors = [(module._buffers, dict(module._buffers)) for module in layer.modules()]
    try:
        graph = _Tracer().trace(_Call(layer, args, kwargs))
    except Exception:  # somebody else's code on arguments that it does not know: it may raise anything
        return None
    finally:
        changed = vars(layer).keys() != before.keys() or any(vars(layer)[name] is not before[name] for name in before)
        drew = not torch.equal(state, torch.get_rng_state()) or of_python != random.getstate()
        changed = changed or not around.current()
        for held, stood in tensors:  # a buffer is another tensor now
            changed = changed or any(held[name] is not tensor for name, tensor in stood.items())
            held.update(stood)
        vars(layer).clear()
        vars(layer).update(before)
        put_back(differences(around.places, around.contents))
        torch.set_rng_state(state)
        random.setstate(of_python)
    frozen = any(node.op == "get_attr" and not node.target.startswith("layer.") for node in graph.nodes)
    return None if changed or drew or frozen or any(map(_writes_to_state, graph.nodes)) else graph


def _writes_to_state(node: fx.Node) -> bool:
    """Whether it writes to a parameter or buffer, or to a view of one, which no output may depend on."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = node.target in _IN_PLACE or (str(name).endswith("_") and not str(name).endswith("__"))
    written: Any = node.args[0] if node.args and node.op in ("call_method", "call_function") and in_place else None
    while isinstance(written, fx.Node) and written.op in ("call_method", "call_function") and written.args:
        written = written.args[0]
    return isinstance(written, fx.Node) and written.op == "get_attr"


def _cut(graph: fx.Graph, x: fx.Node, out: Any, layer: nn.Module, last: bool) -> tuple[fx.Node, list[fx.Node]]:
    """The latest state before `out`, and what is added to it to make `out`: all that depends on it only."""
    if not _summands(out):
        does = _describe(out, layer)
        raise InputError(
            f"the last thing that {type(layer).__name__} does is {does}, not the addition"
            if last
            else f"{type(layer).__name__} adds to {does}, not to its own input",
            "layers x -> x + f(x)",
            "take a pre-activation or pre-norm layer, whose addition comes last",
        )
    parts = _addends(out)
    order = {node: place for place, node in enumerate(graph.nodes)}
    for state in sorted((node for node in parts if node is x or _summands(node)), key=order.__getitem__, reverse=True):
        rest = _rest(out, state)
        if rest and x not in _ancestors(rest, state):
            return state, rest
    nodes = " and ".join(_describe(node, layer) for node in _summands(out))
    raise InputError(
        f"{type(layer).__name__} adds {nodes}, and neither is its own input",
        "layers x -> x + f(x)",
        "leave layers with a projection on the shortcut as they are",
    )


def _summands(node: Any) -> tuple[fx.Node, ...]:
    """The two nodes of a sum; none where a node is no sum of two nodes."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return ()
    adds = node.op == "call_function" and node.target in _ADDITIONS
    adds = adds or (node.op == "call_method" and node.target in _ADDING_METHODS)
    nodes = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
    return nodes if adds and len(nodes) == len(node.args) == 2 else ()


def _addends(out: fx.Node) -> set[fx.Node]:
    """Everything below `out` in its tree of sums, partial sums too; nothing where it is no sum."""
    nodes: set[fx.Node] = set()
    stack = list(_summands(out))
    while stack:
        node = stack.pop()
        nodes.add(node)
        stack += _summands(node)
    return nodes


def _rest(out: fx.Node, state: fx.Node) -> list[fx.Node]:
    """What `out` is beside `state`, the innermost addend last; none where the state is added twice."""
    rest: list[fx.Node] = []
    node = out
    while node is not state:
        inside = [arg for arg in _summands(node) if arg is state or state in _addends(arg)]
        if len(inside) != 1:
            return []
        rest += [arg for arg in _summands(node) if arg is not inside[0]]
        (node,) = inside
    return rest


def _ancestors(nodes: Sequence[fx.Node], stop: fx.Node) -> set[fx.Node]:
    """The nodes themselves and all that they are made from, `stop` left out."""
    ancestors: set[fx.Node] = set()
    stack = [node for node in nodes if node is not stop]
    while stack:
        node = stack.pop()
        if node not in ancestors:
            ancestors.add(node)
            stack += [before for before in node.all_input_nodes if before is not stop]
    return ancestors


def _branch(layer: nn.Module, graph: fx.Graph, state: fx.Node, extras: fx.Node, rest: list[fx.Node]) -> Branch:
    """The part of the graph from `state` to the sum of `rest`."""
    needed, part = _ancestors(rest, state), fx.Graph()
    place = {state: part.placeholder("x"), extras: part.placeholder("leaves")}
    for node in graph.nodes:
        if node in needed and node is not extras:
            place[node] = part.node_copy(node, place.__getitem__)
            if node.op in ("call_module", "get_attr"):
                place[node].target = _inside(node.target)
    total = place[rest[-1]]
    for node in reversed(rest[:-1]):
        total = part.call_function(operator.add, (total, place[node]))
    part.output(total)
    targets = [str(node.target) for node in part.nodes if node.op in ("call_module", "get_attr")]
    function = type(fx.GraphModule(layer, part)).forward  # reads what it needs from whatever it is called with
    names = frozenset(target.partition(".")[0] for target in targets)
    return Branch(function, names, _start(graph, needed, state))


def _start(graph: fx.Graph, needed: set[fx.Node], state: fx.Node) -> str | None:
    """The child that a branch begins with: when it is called, all that makes the state before has run."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    first = next((node for node in nodes if node in needed), None)
    calls = [node for node in nodes if node.op == "call_module" and first is not None and node.target == first.target]
    if first is None or len(calls) != 1:
        return None
    before = _ancestors([state], first)
    late = any(node in before for node in nodes[nodes.index(first) :])
    return None if late else _inside(first.target)


def _inside(target: Any) -> str:
    return str(target).removeprefix("layer.")


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (type(module) is nn.Sequential and not len(module))


def _describe(node: Any, layer: nn.Module) -> str:
    """A node in words: `relu`, or `BatchNorm2d (bn2)`."""
    if not isinstance(node, fx.Node):
        return "returning no tensor of its own"
    if node.op == "call_module":
        name = _inside(node.target)
        return f"{type(layer.get_submodule(name)).__name__} ({name})"
    if node.op == "placeholder":
        return "handing on its input"
    if node.target in _ADDITIONS | _ADDING_METHODS:
        return "adding something else than a tensor, or a multiple of one"
    return str(getattr(node.target, "__name__", node.target))
