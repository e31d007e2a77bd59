"""Functions in pieces (`jnp.where(u > 0.2, u, -0.3 * u)`), and whether the pieces meet where one ends.

Most do, as those of ReLU, ELU and a clip. It can be told where a number is compared with a constant, and both pieces
are functions of it alone: their values there are two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from odenet.kit import few_numbers
from odenet_jax.field.rules import inexact

_DEEPEST = 24
"""Operations between a number and a piece of it: what is further is a network, and not looked at."""
_APART = 1e-3
"""Sides of a place that are less apart, beside one and their size, approximate one function."""
_STEP = 1e-9
"""How far the sides of a place are from it, beside one and its size."""
_TRIED = (0.3, -0.7)
"""Where two numbers of the state are held to be equal."""


@dataclass(eq=False)
class Node:
    """One result of an operation, of those that it was computed from.

    Args:
        name: of the operation.
        inputs: what it reads.
        moving: whether it is a function of the state.
        value: of a constant number.
    """

    name: str
    inputs: Sequence[Node] = ()
    moving: bool = False
    value: Any = None


Values = dict[int, Any]
"""What nodes are, by identity, where the number that is compared is the constant: numbers, or None if unknown."""


def apart(program: Any, state: slice) -> bool:
    """Whether a program chooses between pieces that do not meet.

    Args:
        program: of the field.
        state: which of its arguments are the state.
    """
    inputs = [Node("argument") for _ in program.invars]
    for node in inputs[state]:
        node.moving = True
    choices: list[Node] = []
    _results(program, inputs, choices)
    inner: set[tuple[int, int]] = set()
    for choice in reversed(choices):  # those that read others come after them
        within, own = list(_within(choice)), list(_places(choice.inputs[0]))
        for number in {id(place[0]): place[0] for place in own}.values():
            if (id(choice), id(number)) in inner:
                continue
            # a piece need not meet where it is not: it keeps a root's number positive, say
            inner |= {(id(other), id(number)) for other in within}
            every = own + [place for other in within for place in _places(other.inputs[0])]
            if any(_apart(choice, *place) for place in every if place[0] is number):
                return True
    return False


def _within(choice: Node) -> Iterator[Node]:
    """The choices that a choice's pieces are made by."""
    seen, rows = {id(choice)}, [choice]
    for _ in range(_DEEPEST):
        read = {id(node): node for of in rows for node in of.inputs if id(node) not in seen}
        seen.update(read)
        rows = list(read.values())
        yield from (node for node in rows if node.name == "select_n")


def _results(program: Any, inputs: Sequence[Node], choices: list[Node]) -> list[Node]:
    """The nodes of a program's results; what chooses in it, and in the programs within, joins `choices`."""
    program = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    nodes: dict[Any, Node] = dict(zip(program.invars, inputs, strict=True))

    def node(atom: Any) -> Node:
        if not isinstance(atom, Literal):
            return nodes.get(atom) or Node("constant")
        return Node("number", value=np.asarray(atom.val).item() if np.size(atom.val) == 1 else None)

    for equation in program.eqns:
        read = [node(atom) for atom in equation.invars]
        moving = any(of.moving for of in read)
        found = [Node(equation.primitive.name, read, moving) for _ in equation.outvars]
        for inner in _programs(equation.params.values()) if moving else ():
            of_inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            called = equation.primitive.name not in ("scan", "while") and len(of_inner.invars) == len(read)
            given = read if called else [Node("argument", moving=True) for _ in of_inner.invars]
            results = _results(of_inner, given, choices)
            if called and len(results) == len(found):
                found = results
        two = equation.primitive.name == "select_n" and len(read) == 3
        if two and read[0].moving and inexact(equation.outvars[0]):
            choices.append(found[0])
        nodes.update(zip(equation.outvars, found, strict=True))
    return [node(atom) for atom in program.outvars]


def _programs(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _programs(value)


def _places(condition: Node, depth: int = 0) -> Iterator[tuple[Node, Values, Values]]:
    """Where a condition changes, if that can be told: the number that is compared, and both sides of there."""
    if condition.name in ("and", "or", "not", *_KEEPING) and depth < _DEEPEST:
        for node in condition.inputs:
            yield from _places(node, depth + 1)
    if condition.name not in ("gt", "ge", "lt", "le"):
        return
    one, other = map(_bare, condition.inputs)
    if one.moving and other.moving:  # a largest number, or a k-th one: they are equal somewhere
        alone = _value(other, {id(one): 0.3}) is None and _value(one, {id(other): 0.3}) is None
        for value in _TRIED if alone else ():
            before, after = _sides(value)
            yield one, {id(one): before, id(other): value}, {id(one): after, id(other): value}
        return
    number, constant = (one, other) if one.moving else (other, one)
    value = _value(constant, {})
    if not number.moving or value is None or not math.isfinite(value):
        return
    before, after = _sides(value)
    yield number, {id(number): before}, {id(number): after}
    if number.name == "abs":  # on either side of zero
        of = _bare(number.inputs[0])
        for sign in (-1, 1):
            yield (
                number,
                {id(number): before, id(of): sign * before},
                {id(number): after, id(of): sign * after},
            )


def _sides(value: float) -> tuple[float, float]:
    step = _STEP * (1 + abs(value))
    return value - step, value + step


def _apart(choice: Node, number: Node, before: Values, after: Values) -> bool:
    one, other = _value(choice, before), _value(choice, after)
    if one is None or other is None or not abs(one - other) > _APART * (1 + abs(one) + abs(other)):
        return False
    # what keeps a divisor from zero
    pieces = [_bare(piece) for piece in choice.inputs[1:]]
    guard = abs(before[id(number)]) <= few_numbers.NEAR_ZERO and number in pieces
    return not (guard and any(not piece.moving for piece in pieces))


def _bare(node: Node) -> Node:
    return _bare(node.inputs[0]) if node.name in _KEEPING else node


def _value(node: Node, at: Values, depth: int = 0) -> Any:
    """What a node is there; None where it is no function of the number that is compared. `at` keeps what was found."""
    if id(node) not in at:
        at[id(node)] = None if depth > _DEEPEST else _computed(node, at, depth + 1)
    return at[id(node)]


def _computed(node: Node, at: Values, depth: int) -> Any:
    if node.name == "number":
        return node.value
    if node.name in _KEEPING:
        return _value(node.inputs[0], at, depth)
    if node.name == "select_n":
        which = _value(node.inputs[0], at, depth)
        return None if which is None else _value(node.inputs[1 + int(which)], at, depth)
    if node.name not in _FUNCTIONS and node.name != "mul":
        return None
    values = [_value(of, at, depth) for of in node.inputs]
    if node.name == "mul":
        known = [value for value in values if value is not None]
        return 0.0 if 0 in known else known[0] * known[1] if len(known) == 2 else None
    if any(value is None for value in values):
        return None
    try:
        return float(_FUNCTIONS[node.name](*values))
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        return None


_KEEPING = frozenset(
    "broadcast_in_dim reshape convert_element_type copy squeeze expand_dims transpose stop_gradient".split()
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "add_any": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "max": max,
    "min": min,
    "abs": abs,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
    "sqrt": math.sqrt,
    "square": lambda a: a * a,
    "logistic": lambda a: 1 / (1 + math.exp(-a)),
    "erf": math.erf,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
}
