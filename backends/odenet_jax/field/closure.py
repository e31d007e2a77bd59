"""Functions whose closure's arrays are leaves of them as trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr, Literal

from odenet import UnsupportedError
from odenet_jax.field.collectives import named_axes
from odenet_jax.field.state import require_no_reference
from odenet_jax.field.varying import alike, axes_of


class Converted(eqx.Module):
    """A function of arrays whose closure's arrays are its leaves: called with the shapes that it was traced with.

    That of equinox refuses arguments whose sharding over a mesh, or whose weak type, is another than that of the
    examples; in a loop these are what JAX makes them.
    """

    jaxpr: Jaxpr
    consts: list[Array]
    inputs: Any = eqx.field(static=True)
    outputs: Any = eqx.field(static=True)
    collective: bool = eqx.field(static=True)
    """Whether it reads other rows of a `jax.vmap`, or its own row's index, by the name of its axis."""

    def __call__(self, *arguments: Any) -> Any:
        """The value of the function at these arguments."""
        leaves, structure = jax.tree.flatten(arguments)
        assert structure == self.inputs, (structure, self.inputs)
        leaves = [
            alike(jnp.asarray(leaf), axes=axes) if (axes := axes_of(variable.aval)) else leaf
            for leaf, variable in zip(leaves, self.jaxpr.invars, strict=True)
        ]
        return jax.tree.unflatten(self.outputs, _evaluate(self.jaxpr, self.consts, leaves))


def _evaluate(jaxpr: Any, consts: Any, arguments: Sequence[Any]) -> list[Any]:
    """The program's values. Its inputs may vary over more mesh axes than when it was traced, as arrays of a closure do
    in a loop (see `field.varying`): then what is computed of them varies, too, and what meets it is made to."""
    if not any(axes_of(leaf) for leaf in (*consts, *arguments)):
        return jax.core.eval_jaxpr(jaxpr, consts, *arguments)
    environment: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return jnp.asarray(variable.val, variable.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        return environment[variable]

    for equation in jaxpr.eqns:
        inputs, name = [value(atom) for atom in equation.invars], equation.primitive.name
        if name == "pvary":
            outputs: Any = [alike(atom, axes=equation.params["axes"]) for atom in inputs]
        elif all(axes_of(array) == axes_of(atom.aval) for array, atom in zip(inputs, equation.invars, strict=True)):
            outputs = evaluated(equation, inputs)
        else:
            again = _AGAIN.get(name)
            outputs = (evaluated if again is None else again)(equation, alike(inputs))
        environment.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def evaluated(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """One equation's values: those of a program that has no other."""
    # a variable for each input: an equation may read one twice, or a number
    like = jax.make_jaxpr(lambda *inputs: [0.0] * len(equation.outvars))(*inputs).jaxpr
    alone = equation.replace(invars=like.invars)
    program = like.replace(eqns=[alone], outvars=equation.outvars, effects=equation.effects)
    return jax.core.eval_jaxpr(program, (), *inputs)


def _inner(closed: Any, axes: frozenset[str]) -> Callable[..., list[Any]]:
    """A program within the program, whose values vary over these axes."""
    return lambda *arguments: [alike(output, axes=axes) for output in _evaluate(closed.jaxpr, closed.consts, arguments)]


def _axes(values: Any) -> frozenset[str]:
    return frozenset[str]().union(*map(axes_of, values))


def _jit(equation: Any, inputs: list[Any]) -> list[Any]:
    return _inner(equation.params["jaxpr"], frozenset())(*inputs)


def _cond(equation: Any, inputs: list[Any]) -> list[Any]:
    index, *rest = inputs
    return lax.switch(index, [_inner(branch, _axes(inputs)) for branch in equation.params["branches"]], *rest)


def _scan(equation: Any, inputs: list[Any]) -> list[Any]:
    params, axes = equation.params, _axes(inputs)
    fixed, moving = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, inner = inputs[:fixed], _inner(params["jaxpr"], axes)

    def body(carry: Any, elements: Any) -> Any:
        outputs = inner(*consts, *carry, *elements)
        return outputs[: moving - fixed], outputs[moving - fixed :]

    carry, outputs = lax.scan(
        body, inputs[fixed:moving], inputs[moving:], params["length"], params["reverse"], params["unroll"]
    )
    return [*carry, *outputs]


def _while(equation: Any, inputs: list[Any]) -> list[Any]:
    params, axes = equation.params, _axes(inputs)
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    going, body = _inner(params["cond_jaxpr"], axes), _inner(params["body_jaxpr"], axes)
    return lax.while_loop(
        lambda carry: going(*inputs[:first], *carry)[0],
        lambda carry: body(*inputs[first:second], *carry),
        inputs[second:],
    )


def _checkpoint(equation: Any, inputs: list[Any]) -> list[Any]:
    params = equation.params
    checkpointed = jax.checkpoint(
        lambda *arguments: _evaluate(params["jaxpr"], (), arguments),
        prevent_cse=params["prevent_cse"],
        policy=params["policy"],
    )
    return checkpointed(*inputs)


def _custom_jvp(equation: Any, inputs: list[Any]) -> list[Any]:
    """With the rule of the function, which is traced with what varied when the function was."""
    call, rule, consts = (equation.params[name] for name in ("call_jaxpr", "jvp_jaxpr_fun", "num_consts"))
    axes = _axes(inputs)

    @jax.custom_jvp
    def again(*arguments: Any) -> list[Any]:
        return _inner(call, axes)(*arguments)

    def forward(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        unmoved = [isinstance(tangent, SymbolicZero) for tangent in tangents[consts:]]
        jaxpr, closed, still = rule.call_wrapped(*unmoved)
        moving = [tangent for tangent in tangents[consts:] if not isinstance(tangent, SymbolicZero)]
        outputs = [alike(output, axes=axes) for output in _evaluate(jaxpr, closed, [*primals[consts:], *moving])]
        values, slopes = outputs[: len(still)], iter(outputs[len(still) :])
        pairs = zip(values, still, strict=True)
        return values, [jnp.zeros_like(value) if zero else next(slopes) for value, zero in pairs]

    again.defjvp(forward, symbolic_zeros=equation.params["symbolic_zeros"])
    return again(*inputs)


def _custom_vjp(equation: Any, inputs: list[Any]) -> list[Any]:
    """The value. The function's own backward pass is written for arrays that vary as they did: for one that is the same
    on all devices it may add up over them, which would be done twice."""
    axes = _axes(inputs)

    @jax.custom_vjp
    def again(*arguments: Any) -> list[Any]:
        return _inner(equation.params["call_jaxpr"], axes)(*arguments)

    def refuse(*arguments: Any) -> Any:
        raise UnsupportedError(
            "a gradient through a jax.custom_vjp function in the field, of an array that the field closes over and "
            f"that does not vary over the mesh axis {', '.join(sorted(axes))} of jax.shard_map",
            "arrays in weights, or closed-over arrays that vary over the axis",
            "give it in weights; or jax.lax.pcast(array, axis, to='varying') before the solve",
        )

    again.defvjp(refuse, refuse)
    return again(*inputs)


_AGAIN = {
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "custom_vjp_call_jaxpr": _custom_vjp,  # of JAX before 0.6
    "jit": _jit,
    "pjit": _jit,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
"""How programs within the program are run, by the name of the primitive that holds them."""


def converted(function: Callable[..., Any], *examples: Any) -> Converted:
    """The function, traced with examples.

    It is traced as it will be called in a loop: with arguments that vary over all mesh axes that some argument, or an
    array of the closure, varies over. A program traced with others would not have its numbers vary as the arguments.
    """
    examples = alike(examples)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    if any(map(axes_of, closed.consts)):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*alike(examples, closed.consts))
    require_no_reference("a function of the user (the field, a block or an event) closes over", closed.consts)
    collective = any(True for _ in named_axes(closed.jaxpr))
    return Converted(closed.jaxpr, closed.consts, jax.tree.structure(examples), jax.tree.structure(shape), collective)
