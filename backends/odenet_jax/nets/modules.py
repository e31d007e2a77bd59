"""Networks: residual stacks of any equinox modules, neural ODEs, and the networks of a `NetSpec`.

Over 250 lines, most of them docstrings, so that the three networks stand in one file as they do for torch.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from odenet import (
    Depth,
    DtypeError,
    Gradient,
    GradientName,
    InputError,
    NetSpec,
    PIDController,
    Problem,
    Solution,
    SolverName,
    StateError,
    UnsupportedError,
)
from odenet.kit import (
    BACKWARD_FAULTS,
    AnySolver,
    Kind,
    called,
    instance,
    kind_of_blocks,
    problem,
    require_finite_tree,
    require_one_grid,
    several,
    shown,
    staged,
    takes,
)
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_jax.field.block_state import gathered, holds_state, marked_as
from odenet_jax.field.flax_modules import is_flax, parted
from odenet_jax.field.replay import BlockContext, block_context, call
from odenet_jax.field.state import flattened, repeated, require_no_reference, stacked
from odenet_jax.field.trees import difference
from odenet_jax.gradients.solve import solve_problem, solve_with_context
from odenet_jax.nets.blocks import Ordinary, enter, field, leave
from odenet_jax.nets.counting import CountingField

_FIELD = "a field that can be called as field(t, y)"


class _Owner:
    """Whose method the field of a network is: what the alarm of `odenet.kit` knows the network by."""


class Unseen:
    """The owner as a static field. All are equal to JAX, so that networks of one structure stay of one structure.

    The field of a network is a function made anew at each call, and an updated network another object: known by either,
    a network would be told at each call what is said once.
    """

    def __init__(self) -> None:
        self.owner = _Owner()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unseen)

    def __hash__(self) -> int:
        return hash(Unseen)

    def method(self, field: Callable[..., Any]) -> Callable[..., Any]:
        """A field, its first argument the owner, as a method of the owner."""
        return types.MethodType(field, self.owner)


class _Settings:
    """Choices of a network as a static field, which JAX compares and hashes, as arrays cannot be: by their numbers."""

    def __init__(self, **choices: Any) -> None:
        self.choices = choices

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.choices.items())

    def _key(self) -> Any:
        open_records = {k: vars(v) if isinstance(v, PIDController) else v for k, v in self.choices.items()}
        leaves, structure = flattened(open_records, "rtol, atol or control")
        return structure, tuple(map(_comparable, leaves))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Settings) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())


def _comparable(leaf: Any) -> Any:
    """What stands for a choice where choices are compared: the bytes of an array, a traced array itself."""
    if isinstance(leaf, Tracer):
        return id(leaf)
    array = np.asarray(leaf) if isinstance(leaf, np.ndarray | jax.Array) else None
    return leaf if array is None else (array.shape, array.dtype, array.tobytes())


def _plain(number: Any) -> Any:
    """A number of NumPy as Python's: equinox takes NumPy's in a static field for an array that is there by mistake."""
    return number.item() if isinstance(number, np.generic | np.ndarray) and number.ndim == 0 else number


class ResidualStack(eqx.Module):
    """Residual blocks `x -> f(x)` as the layers of a solver: with Euler, `x <- x + h f_n(x)`, h = (t1 - t0) / steps.

    Args:
        blocks: modules of one structure that keep the shape of their input; their arrays are stacked. A module may
            stand at several places and is kept once. For blocks with a state (BatchNorm) see `stateful`.
        solver: a name or record. Euler gives a ResNet, Heun a HeunNet.
        gradient: a name or record.
        along: "piecewise": N blocks are N steps. "linear": parameters are interpolated between blocks, so that N blocks
            are N-1 steps; step n of Heun reads blocks n and n+1. None takes "piecewise" for Euler, else "linear".
            Integers, booleans and random keys are block n's within step n, and block n+1's at its end.
        t0, t1: times; the default scales each of N steps by 1/N. `t1=len(blocks)` is the plain ResNet, h = 1.

    Shapes: any array (or tree of arrays) in, the same shapes out.

    Raises:
        InputError: no blocks, or blocks of different structures.
    """

    blocks: Any
    order: tuple[int, ...] = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    along: Kind = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)
    unseen: Unseen = eqx.field(static=True, repr=False)

    def __init__(
        self,
        blocks: Sequence[Callable[..., Any]],
        *,
        solver: SolverName | AnySolver = "euler",
        gradient: GradientName | Gradient = "backprop",
        along: Literal["piecewise", "linear"] | None = None,
        t0: float = 0.0,
        t1: float = 1.0,
    ) -> None:
        self.solver, self.gradient, self.unseen = solver_named(solver), gradient_named(gradient), Unseen()
        for name, time in (("t0", t0), ("t1", t1)):
            if isinstance(time, jax.Array):
                raise InputError(
                    f"{name} of a ResidualStack is an array, which would get no gradient",
                    f"a number, as in float({name})",
                )
        self.t0, self.t1 = _plain(t0), _plain(t1)
        self.along = kind_of_blocks(along, staged(self.solver, "a ResidualStack").stages)
        blocks = several("blocks", blocks)
        require_finite_tree("blocks", blocks)
        require_no_reference("a block holds", [leaf for block in blocks for leaf in jax.tree.leaves(block)])
        if not all(callable(block) for block in blocks):
            raise InputError(f"blocks of {', '.join(type(block).__name__ for block in blocks)}", "callables x -> f(x)")
        single = {id(block): block for block in blocks}
        places = {key: i for i, key in enumerate(single)}
        self.order = tuple(places[id(block)] for block in blocks)
        parts = [eqx.partition(block, eqx.is_array) for block in single.values()]
        unlike = next(filter(None, (difference(blocks[0], block) for block in single.values())), None)
        if not parts or unlike is not None:
            remedy = _STATEFUL if any(map(holds_state, single.values())) else ""
            what = f"{len(parts)} blocks of different structures" + ("" if unlike is None else f" ({unlike})")
            raise InputError(what, "at least one, all of one structure", remedy)
        self.blocks = eqx.combine(jax.tree.map(lambda *leaves: stacked(leaves), *(a for a, _ in parts)), parts[0][1])

    @classmethod
    def stateful(cls, make: Callable[[Array], Any], keys: Array, **choices: Any) -> tuple[ResidualStack, eqx.nn.State]:
        """A stack of blocks with a state, such as BatchNorm's, and that state, whose leaves have an axis of blocks.

        Args:
            make: from a random key to a block.
            keys: one for each block, as of `jax.random.split(key, count)`.
            choices: those of `ResidualStack`.
        """
        stacked, state = eqx.filter_vmap(eqx.nn.make_with_state(make))(keys)
        arrays, static = eqx.partition(stacked, eqx.is_array)
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i], arrays) for i in range(len(keys))]
        return cls([eqx.combine(row, static) for row in rows], **choices), state

    @classmethod
    def with_state(cls, blocks: Sequence[Any], state: Any = None, **choices: Any) -> tuple[ResidualStack, Any]:
        """A stack of blocks that were made with a state, and that state, whose leaves have an axis of blocks.

        Args:
            blocks: of equinox, or modules of flax.nnx, which hold their state: parameters (`nnx.Param`) are weights,
                and their other variables (running statistics, counts of random numbers) are the state. These modules
                are left as they are: `stack(x, state=state)` returns the new state.
            state: of equinox's blocks: the `eqx.nn.State` of a model that has them, or one for each block.
            choices: those of `ResidualStack`.

        Raises:
            InputError: blocks that share an entry of their state, or blocks of equinox without one.
        """
        if all(map(is_flax, blocks)):
            parts = [parted(block) for block in blocks]
            return cls([block for block, _ in parts], **choices), _stacked([state for _, state in parts])
        if state is None or any(map(is_flax, blocks)):
            raise InputError(
                "blocks of equinox and no state" if state is None else "blocks of flax.nnx beside others",
                "blocks and state of equinox as from eqx.nn.make_with_state, or blocks of flax.nnx alone",
            )
        alike = [marked_as(block, blocks[0]) for block in blocks]
        if isinstance(state, eqx.nn.State):
            return cls(alike, **choices), gathered(blocks, state)
        states = isinstance(state, (list, tuple)) and all(isinstance(each, eqx.nn.State) for each in state)
        if not states or len(state) != len(blocks):
            raise InputError(
                f"state={shown(state)} of {len(blocks)} blocks", "an eqx.nn.State of all, or a list of one for each"
            )
        rows = [gathered([block], own) for block, own in zip(blocks, state, strict=True)]
        alike_rows = [jax.tree.unflatten(jax.tree.structure(rows[0]), jax.tree.leaves(row)) for row in rows]
        return cls(alike, **choices), jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *alike_rows)

    @property
    def depth(self) -> Depth:
        """The blocks along depth, their arrays stacked, for `odenet.theory`."""
        stack = self.blocks
        if not any(map(eqx.is_array, jax.tree.leaves(stack))):
            raise InputError(
                f"{len(self.order)} blocks of a ResidualStack that hold no array",
                "blocks with parameters",
                "odenet_jax.solve(lambda t, y: block(y), x, steps=N)",
            )
        if self.order != tuple(range(len(self.order))):
            arrays, static = eqx.partition(stack, eqx.is_array)
            stack = eqx.combine(jax.tree.map(lambda leaf: repeated(leaf, self.order), arrays), static)
        return Depth(stack, self.along)

    @property
    def field(self) -> Callable[[Any, Any, Any], Any]:
        """`f(t, y, w)` of the stack, w being a layer of `depth`: `odenet.solve` of both is what the stack does."""
        return lambda t, y, block: block(y)

    def __call__(
        self,
        x: Any,
        *arguments: Any,
        state: Any = None,
        key: Array | None = None,
        probe: Array | None = None,
        axis_name: str | None = None,
        **named: Any,
    ) -> Any:
        """The state after the last block.

        Blocks are called as `block(x, *arguments, **named)`. An evaluation that is repeated in the backward pass draws
        the same random numbers, reads the same state, and counts once.

        Args:
            x: what the blocks add to.
            arguments, named: further ones of every block; arrays among them get their gradients.
            state: of the blocks, which are called as `block(x, *arguments, state, **named)` and return their value and
                their new state. It has no gradient: a loss that reads it raises a GradientError (a compiled program
                when it runs).
            key: blocks are called with `key=` a key of their own, each evaluation with another.
            probe: see `odenet_jax.solve`.
            axis_name: blocks are called on single rows, under a `jax.vmap` of this name over the leading axis of x and
                of arrays among the arguments. With a gradient method other than backprop this takes less memory than a
                `jax.vmap` of the stack, which holds a gradient of the weights for every row until all are done.

        Returns:
            As x. Where a state is given, (as x, the new state).

        Raises:
            StateError: a state that is not that of these blocks.
        """

        if state is None and holds_state(self.blocks):
            raise StateError("blocks with a state (BatchNorm), called without one", "stack(x, state=state)", _STATEFUL)

        def field(_: _Owner, t: Array, y: Any, block: Any, *context: Any) -> Any:
            value = call(block, (y, *arguments), named, *context, axis_name=axis_name)
            return value if context else value[0]

        choices = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": self.gradient}
        ivp = problem(self.unseen.method(field), x, self.depth, **choices)
        context = block_context(state, key, self.order, self.along, ivp)
        solution, after = solve_with_context(ivp, probe, context)
        return solution.y1 if state is None else (solution.y1, after)


_STATEFUL = (
    "ResidualStack.stateful(make, keys) makes the blocks of such a stack together with their state, and "
    "ResidualStack.with_state(blocks, state) takes blocks that were made with theirs"
)


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, leaves with a leading axis.

    Raises:
        InputError: trees of different structures.
    """
    if any(jax.tree.structure(tree) != jax.tree.structure(trees[0]) for tree in trees):
        raise InputError(f"{len(trees)} blocks whose states have different structures", "all of one structure")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class NeuralODE(eqx.Module):
    """`y(t1)` of `y' = field(t, y)` from y(t0) = x.

    Args:
        field: a module `field(t, y)`.
        steps: of the solver; None for an adaptive solve.
        solver, gradient: names or records; the default solver is rk4, of an adaptive solve dopri5.
        t0, t1: times; of an adaptive solve also arrays, which get a gradient.
        rtol, atol, control: of an adaptive solve, as in `odenet.solve`; they get no gradient.

    Shapes: any array in, the same shape out.

    Raises:
        InputError: both steps and tolerances, or neither.
    """

    field: Any
    steps: int | None = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    times: tuple[Any, Any]
    """t0 and t1 where they are arrays, which are leaves; else None."""
    numbers: tuple[Any, Any] = eqx.field(static=True)
    settings: _Settings = eqx.field(static=True)
    unseen: Unseen = eqx.field(static=True, repr=False)

    def __init__(
        self,
        field: Callable[[Array, Array], Array],
        *,
        steps: int | None = None,
        solver: SolverName | AnySolver | None = None,
        gradient: GradientName | Gradient = "backprop",
        t0: Any = 0.0,
        t1: Any = 1.0,
        rtol: Any = None,
        atol: Any = None,
        control: PIDController | None = None,
    ) -> None:
        self.settings, self.unseen = _Settings(rtol=rtol, atol=atol, control=control), Unseen()
        require_one_grid(steps, {"rtol": rtol, "atol": atol, "control": control})
        if not callable(field):
            raise InputError(f"field is a {type(field).__name__}", "a callable field(t, y)")
        require_finite_tree("field", field)
        takes(field, 2, "field", _FIELD)
        concrete = isinstance(steps, jax.Array) and steps.ndim == 0 and not isinstance(steps, Tracer)
        self.field, self.steps = field, _plain(np.asarray(steps) if concrete else steps)
        default = "dopri5" if steps is None else "rk4"
        self.solver = solver_named(default if solver is None else solver)
        self.gradient = gradient_named(gradient)
        self.times, self.numbers = eqx.partition((_plain(t0), _plain(t1)), lambda time: isinstance(time, jax.Array))

    @property
    def t0(self) -> Any:
        """The time t0 at which the solve starts."""
        return eqx.combine(self.times, self.numbers)[0]

    @property
    def t1(self) -> Any:
        """The time t1 at which the solve ends."""
        return eqx.combine(self.times, self.numbers)[1]

    @property
    def rtol(self) -> Any:
        """The relative tolerance of an adaptive solve, else None."""
        return self.settings.choices["rtol"]

    @property
    def atol(self) -> Any:
        """The absolute tolerance of an adaptive solve, else None."""
        return self.settings.choices["atol"]

    @property
    def control(self) -> PIDController | None:
        """The step size control of an adaptive solve, or None for the default."""
        return self.settings.choices["control"]

    def __call__(self, x: Any, probe: Array | None = None) -> Any:
        """The state at t1; for `probe` see `odenet_jax.solve`."""
        choices = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": self.gradient}
        choices |= {"steps": self.steps} | self.settings.choices
        ivp = problem(
            self.unseen.method(lambda _, t, y, field: called(field, (t, y), "field", _FIELD)), x, self.field, **choices
        )
        return solve_problem(ivp, probe).y1


class OdeNet(eqx.Module):
    """The network of a `NetSpec`; `weights` has the spec's names, and `statistics` those of running statistics.

    A call normalises batches by the running statistics, one of `for_training()` by themselves; `in_training` does so
    and returns the running statistics after it, too.

    Args:
        spec: what to build.
        weights: by name, as NumPy arrays, with the running statistics.
        solver, gradient: names or records.
        dtype: of the parameters.

    Shapes: (batch, *spec.inputs) to (batch, classes), or to the state's shape without classes.
    """

    weights: dict[str, Array]
    statistics: dict[str, Array]
    function: Callable[..., Any] = eqx.field(static=True)
    spec: NetSpec = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    training: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: NetSpec,
        weights: Mapping[str, np.ndarray],
        *,
        solver: SolverName | AnySolver = "euler",
        gradient: GradientName | Gradient = "backprop",
        dtype: Any = jnp.float32,
    ) -> None:
        instance("spec", spec, NetSpec, "an odenet.NetSpec")
        try:
            inexact = jnp.issubdtype(jnp.dtype(dtype), jnp.inexact) and not isinstance(dtype, np.ndarray | jax.Array)
        except Exception:  # whatever is asked for its number type has ways of its own to have none
            inexact = False
        if not inexact:
            raise DtypeError(f"dtype={shown(dtype)} of a network", "jnp.float32, jnp.float64 or another")
        spec.check(weights)
        if spec.norm in BACKWARD_FAULTS:
            raise UnsupportedError(
                f"norm={spec.norm!r} on JAX, where a block cannot tell the backward pass from the forward pass",
                "norm='batch', 'group' or 'none'; backend torch",
            )
        self.spec, self.training = spec, False
        self.solver, self.gradient = solver_named(solver), gradient_named(gradient)
        self.function = CountingField(spec) if spec.batch_normalised else field(spec)
        self.weights = {name: jnp.asarray(weights[name], dtype) for name in spec.shapes()}
        self.statistics = {name: jnp.asarray(weights[name], dtype) for name in spec.statistics()}

    def __call__(self, x: Array, probe: Array | None = None) -> Array:
        """Logits, or final states; for `probe` see `odenet_jax.solve`."""
        return self._run(x, probe, training=self.training)[0]

    def for_training(self) -> OdeNet:
        """A copy whose calls normalise batches by themselves, and count nothing."""
        copied = copy.copy(self)
        object.__setattr__(copied, "training", True)  # a frozen module's own copy
        return copied

    def in_training(self, x: Array, probe: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """The same with batches normalised by themselves, and the running statistics after it, which count the batch
        once; the network's own stay as they are. `eqx.tree_at(lambda net: net.statistics, net, after)` has the new.

        Raises:
            InputError: a batch that gives a normalisation one value.
        """
        return self._run(x, probe, training=True)

    def _run(self, x: Array, probe: Array | None, training: bool) -> tuple[Array, dict[str, Array]]:
        spec, weights = self.spec, self.weights | self.statistics
        counts, ordinary = training and spec.batch_normalised, Ordinary(training)
        if training:
            spec.check_training(len(x))
        y = x if spec.of_images else x.reshape(x.shape[0], -1)
        if spec.classes is not None:
            y = enter(spec, weights, y, ordinary)
        read = self.weights if counts else weights
        inner = {name.removeprefix("block."): w for name, w in read.items() if name.startswith("block.")}
        if spec.along == "shared":
            inner = {name: w[0] for name, w in inner.items()}
        ivp = problem(
            self.function,
            y,
            Depth(inner, spec.along),
            steps=spec.depth,
            t1=spec.horizon,
            solver=self.solver,
            gradient=self.gradient,
        )
        counting = CountingField(spec) if counts else None  # not `function`, which may be one that is counted itself
        context = None if counting is None else counting.context(self.statistics, ivp)
        solution, totals = self.solve(ivp, probe, context)
        y = solution.ys[0]
        y = y if spec.classes is None else leave(spec, weights, y, ordinary)
        moved = {} if counting is None else counting.moved(self.statistics, totals)
        return y, self.statistics | ordinary.moved | moved

    def solve(self, ivp: Problem, probe: Array | None, context: BlockContext | None) -> tuple[Solution, Any]:
        """Takes the steps, as `solve_with_context`; a network whose steps are another library's has its own."""
        return solve_with_context(ivp, probe, context)
