"""What the methods with a backward pass of their own share: a forward pass that keeps a few states, and VJPs of pieces.

Over 250 lines: the two nodes of autograd, what they keep, and the VJP of a piece are one protocol.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]

from odenet import GradientError, ReversibleSolver, Stats, UnsupportedError
from odenet.kit import Alarm, alarm
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field import saved_tensors
from odenet_torch.field.differentiating import Hooks, forward_mode_again, several_at_once, unseen
from odenet_torch.field.field import BlockField, Stand, now, outside
from odenet_torch.field.raised import as_raised
from odenet_torch.field.replay import Replay
from odenet_torch.field.settled import Settled, settle
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import ENTRIES, ordinary, sample
from odenet_torch.gradients.certificate import Sketch
from odenet_torch.gradients.stages import BackwardSweep, RecordedSweep, StageChain, Way, chain, stages
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.direct import Direct, NotAsBeforeError, NotSettledError
from odenet_torch.steps.fixed import Run, loop, stacked
from odenet_torch.steps.size_control import AcceptedStep

KNOWN = -1


class Adjoint(ABC):
    """A backward pass from the last state."""

    alarm: Alarm | None = None
    """The alarm of the network that is solved; see `certify`."""

    by_y0 = True
    """Whether the gradient of y0 is asked for, as far as that is known."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def sketch(self, y0: Leaves) -> Sketch | None:
        """What the backward pass is to be given of the state at t0, if that is not kept."""
        return None

    def last(self, y: Leaves) -> Leaves | None:
        """What the backward pass is to be given of the state at t1, if that is not kept; the caller may write on it."""
        return None

    def look(self, run: Run, y0: Leaves, states: dict[int, Leaves], last: Leaves | None) -> None:  # noqa: B027
        """All steps have run again, to states by index, of which the last is known by this."""

    back_by = 0
    """How many steps before t1 the state is of which the backward pass is given a sample, to know the field by."""
    known_whole = ENTRIES
    """Of so many entries it is given the whole of a leaf."""

    def keeps(self, run: Run) -> Iterable[int]:
        """The indices of the states that the backward pass is to be given, beside those that the user keeps."""
        return (run.grid.steps,)

    differentiable = False
    """Whether the gradient can be differentiated again."""
    by_steps = True
    """Whether the backward pass takes the steps of the forward pass, by its solver, and no others."""
    reads_outputs = False
    """Whether the backward pass of an adaptive solve starts anew from each output."""

    def keeps_accepted(self, n: int) -> bool:
        """Whether an adaptive solve is to keep the state before its step n."""
        return False

    def by_layers(self, run: Run) -> bool:
        """Whether a backward step evaluates the step of the forward pass that it goes back over, and no other one."""
        return True

    def again_from(self, first: int) -> int:
        """The lowest step that is evaluated while the backward pass goes down to step `first`."""
        return first

    def forth(self, run: Run, y0: Leaves) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
        """The forward pass.

        Returns:
            The states that are wanted, by index, and groups of a tensor for each leaf of y0 (see `SavedStates`).
        """
        return loop(run, y0, self.kept_states(run))

    def kept_states(self, run: Run) -> Iterable[int]:
        """The indices of the states that the forward pass hands on: y0 is there, be it for a witness alone."""
        n = self.witness(run) if self.back_by else 0
        return (*self.keeps(run), n) if n else self.keeps(run)

    def witness(self, run: Run) -> int:
        """The index of the state of which a sample is kept (see `back_by`)."""
        return max(run.grid.steps - self.back_by, 0)

    def witnessed(self, run: Run, states: dict[int, Leaves], y0: Leaves) -> Leaves | None:
        """That state, among those of the forward pass, as the backward pass comes to it."""
        if not self.back_by:
            return None
        n = self.witness(run)
        return states.get(n) if n else y0

    def known_of(self, last: AcceptedStep) -> Leaves | None:
        """Of the last accepted step, what the backward pass is given a sample of, to know the field by."""
        return last.y if self.back_by == 1 else None

    @abstractmethod
    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Way:
        """Gradient with respect to y0; those of weights go to `sums`.

        A generator of the steps that it has gone back, the gradient being its value; or the gradient, all at once.

        Args:
            run: the forward solve.
            saved: what the forward pass kept.
            gradients: of the loss with respect to the states at `grid.kept`, by index.
            sums: for gradients of explicit and captured tensors.
        """

    def solve(self, run: Run, y0: Leaves) -> Leaves:
        """The leaves at the kept times, with this backward pass."""
        if not torch.is_grad_enabled():
            return stacked(run, loop(run, y0)[0])
        refuse_transforms(f"gradient={self.stats.gradient!r}")
        refuse_classes(y0, f"gradient={self.stats.gradient!r}")
        if in_forward_mode():
            return stacked(run, loop(run, y0)[0])
        self.alarm = alarm(next(iter(run.field.functions()), None))
        if 0 in {*self.keeps(run), *run.grid.kept}:
            y0 = own(y0)
        if run.direct is not None:
            return self.settled(run, run.direct, y0)
        field = run.field.apart()
        replay = Replay.of(field, run.layout, run.grid.steps, cut=True)
        run = dataclasses.replace(run, field=field, replay=replay)
        with replay.forth():
            run.ready.append(self.discover(run, _first(run, y0)))
            outputs = self.applied(run, y0, field.everything(run.grid.steps))
        if isinstance(field, BlockField):
            settle(field, replay)
        return outputs

    def settled(self, run: Run, direct: Direct, y0: Leaves) -> Leaves:
        """The same where every block is settled.

        Raises:
            NotSettledError: one is not. NotAsBeforeError: one is no longer.
        """
        settled = Settled.of(direct.field, run.layout.device) if self.by_steps else None
        if settled is None:
            raise NotSettledError
        run = dataclasses.replace(run, settled=settled)
        outputs = self.applied(run, y0, settled.parameters)
        if not settled.same():
            raise NotAsBeforeError
        return outputs

    def applied(self, run: Run, y0: Leaves, every: tuple[Tensor, ...]) -> Leaves:
        """The nodes of autograd's for a pass over weights: one, or a chain of them (see `stages`)."""

        def reads(n: int) -> Iterable[Tensor]:
            if run.settled is not None:
                return read(run, n)
            tensors = (*run.field.explicit(n, run.grid.steps), *run.field.read(n, run.grid.steps))
            return (run.field.home(tensor)[0] for tensor in tensors)

        top, *lower = stages(self.back if self.by_layers(run) else None, run.grid.steps, reads, every)
        if not lower:
            return _FixedStepSolve.apply(run, self, len(y0), None, *y0, *every)
        course = StageChain(y0, every, top.first)
        at = (leaf.detach() for leaf in y0)  # whose gradient comes from the last node
        return _FixedStepSolve.apply(run, self, len(y0), course, *at, chain(course, lower), *top.weights)

    def discover(self, run: Run, y0: Leaves, hooks: Hooks = unseen) -> Leaves:
        """The first evaluation with its graph: what it ends at, beside what is handed over, are tensors f captured.

        Args:
            run, y0: of the forward solve.
            hooks: on what is saved there. An outer checkpoint counts that, and a pass over settled blocks saves less.
        """
        assert run.replay is not None
        since = now()
        y, _, stand = standing(run, 0, y0)
        with hooks(), torch.enable_grad(), run.replay.notice():
            first = run.slope(0, 0.0, y, stand, rank=0)
        known = (*y, *stand.values(), *run.field.read(0, run.grid.steps))
        run.field.capture(outside(first, known, since))
        return tuple(d.detach() for d in first)


def _first(run: Run, y0: Leaves) -> Leaves:
    """Where the first evaluation is: at y0, or where a solver that rounds its states begins."""
    solver = run.solver
    if not isinstance(solver, ReversibleSolver) or not solver.rounds:
        return y0
    with torch.no_grad():
        return solver.start(run, run.grid.size(0), y0)[0]


@dataclass(frozen=True)
class SavedStates:
    """What a forward pass kept.

    Args:
        states: by index, exactly as they were; what is taken out of it is freed.
        pair: what a reversible solver needs for the backward pass, or rounded states are made of.
        sketch: see `Adjoint.sketch`.
        last: see `Adjoint.last`.
        known: of the state that is kept as a witness, a sample (see `Adjoint.back_by`).
    """

    states: dict[int, Leaves]
    pair: tuple[Leaves, ...]
    sketch: Sketch | None = None
    last: Leaves | None = None
    known: Leaves | None = None


def own(y0: Leaves) -> Leaves:
    """Copies of y0, from which the backward pass begins again: the caller may write on y0 until then, unseen by torch
    (a loader that fills one buffer, `.data`, NumPy)."""
    return tuple(leaf.clone() for leaf in y0)


def zeros(y: AnyLeaves) -> Leaves:
    """Leaves of zeros with the shapes and number types of y."""
    return tuple(torch.zeros_like(leaf) for leaf in y)


def standing(run: Run, n: int, y: Leaves) -> tuple[Leaves, tuple[Tensor, ...], dict[int, Tensor]]:
    """Fresh leaves for the state, the explicit weights of step n, and fresh leaves that stand in for these."""
    if run.settled is not None:
        return tuple([leaf.detach().requires_grad_() for leaf in y]), (), {}
    explicit = run.field.explicit(n, run.grid.steps)
    stand = {id(weight): weight.detach().requires_grad_() for weight in explicit}
    return tuple(leaf.detach().requires_grad_() for leaf in y), explicit, stand


def mark(run: Run) -> int:
    """`field.now`, for `require_known`; KNOWN where that is not asked, because all that blocks read is known."""
    return KNOWN if run.settled is not None else now()


def read(run: Run, n: int) -> tuple[Tensor, ...]:
    """The captured leaves that f may read in step n (`Field.read`)."""
    if run.settled is None or run.direct is None:
        return run.field.read(n, run.grid.steps)
    return run.settled.read(run.direct.called(n))


def vjp(
    captured: tuple[Tensor, ...],
    n: int,
    outputs: Leaves,
    y: Leaves,
    explicit: tuple[Tensor, ...],
    stand: Stand,
    cotangent: AnyLeaves,
    since: int,
) -> tuple[Leaves, Sequence[Tensor], Sequence[Tensor | None]]:
    """The one VJP of a piece of step n, in which f may read the `captured` tensors beside the explicit ones.

    Returns:
        The part of y, the tensors that have a gradient, and these gradients.

    Raises:
        GradientError: f reads a tensor here that it did not read in step 0.
    """
    if since == KNOWN and outputs[0].requires_grad:  # one tensor, and blocks that are known
        gradients = pulled(outputs[0], (y[0], *captured), cotangent[0])
        return (torch.zeros_like(y[0]) if gradients[0] is None else gradients[0],), captured, gradients[1:]
    fresh = tuple(stand.values())
    pairs = [(d, g) for d, g in zip(outputs, cotangent, strict=True) if d.requires_grad]
    if not pairs:  # f depends on nothing that has a gradient
        return zeros(y), (), ()
    inputs = (*y, *fresh, *captured)
    if since != KNOWN:
        require_known(n, [d for d, _ in pairs], inputs, since)
    if len(pairs) == 1 and type(outputs[0]) is Tensor:
        ((output, g),) = pairs
        gradients = pulled(output, inputs, g)
    else:
        outputs, cotangents = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    part = tuple([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(y, gradients[: len(y)], strict=True)])
    return part, (*explicit, *captured), gradients[len(y) :]


def pulled(output: Tensor, inputs: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` of one plain tensor, where the shapes are known to fit: its checks of them take as long as
    the arithmetic of a small block. Inputs that the output does not depend on have None."""
    engine = torch.autograd.Variable._execution_engine
    return engine.run_backward((output,), (cotangent,), False, False, inputs, True, accumulate_grad=False)


def refuse_transforms(gradient: str, instead: str = "gradient='backprop'") -> None:
    """Raises UnsupportedError inside a transform of torch.func."""
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedError(
            f"{gradient} inside a transform of torch.func",
            f"{instead} there; every method with loss.backward() and torch.autograd.grad",
            f"take {instead} under torch.func.grad, vjp and jvp; under vmap, torch.no_grad() or a batch axis",
        )


def refuse_classes(tensors: Iterable[Any], gradient: str, instead: str = "gradient='backprop'") -> None:
    """Raises UnsupportedError where a state is of a class that changes what functions of torch do, and that its results
    are of, too: autograd keeps their values, which are of no class of anybody's when steps run again."""
    for tensor in tensors:
        kind = type(tensor)
        if kind is not Tensor and isinstance(tensor, Tensor) and _acts(kind) and _acts(type(tensor.detach() * 1)):
            raise UnsupportedError(
                f"{gradient} of a {kind.__name__}, a tensor whose class has a __torch_function__ of its own",
                f"plain tensors; {instead} with any",
                f"hand over tensor.as_subclass(torch.Tensor), or take {instead}",
            )


@functools.lru_cache(256)
def _acts(kind: type) -> bool:
    own = [vars(base)["__torch_function__"] for base in kind.__mro__ if "__torch_function__" in vars(base)]
    disabled = own[0] is torch._C._disabled_torch_function_impl
    return own[0] is not vars(Tensor)["__torch_function__"] and not disabled and not _ours(kind)


def _ours(kind: type) -> bool:
    return kind.__module__.startswith("odenet_torch.")


def in_forward_mode() -> bool:
    """Whether derivatives are taken forwards (`torch.autograd.forward_ad`), which stores nothing at any depth."""
    return torch.autograd.forward_ad._current_level >= 0


def refuse_second_derivatives(gradient: str) -> None:
    """Raises UnsupportedError in a backward pass that is itself to be differentiated, or that nothing can be recorded
    in."""
    require_recording(f"gradient={gradient!r}")
    if torch.is_grad_enabled():
        raise UnsupportedError(
            f"a second derivative through gradient={gradient!r}",
            "first derivatives (create_graph=False)",
            "take gradient='backprop', which can be differentiated again",
        )


def require_recording(subject: str) -> None:
    """Raises UnsupportedError in a backward pass inside torch.inference_mode(), which is to record steps once more."""
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            f"backward() inside torch.inference_mode(), through {subject}, which records steps again",
            "torch.no_grad() there, or none",
            "call backward() outside of torch.inference_mode()",
        )


def refuse_batches(gradients: Iterable[Tensor | None], gradient: str, instead: str = "gradient='backprop'") -> None:
    """Raises UnsupportedError where a backward pass is given several gradients at once, and has to look at each."""
    if several_at_once(gradients):
        raise UnsupportedError(
            f"several backward passes at once (is_grads_batched=True, vectorize=True) through {gradient}",
            "one after the other",
            f"leave out is_grads_batched and vectorize, or take {instead}",
        )


def require_finite(a: AnyLeaves, t: float) -> None:
    """Raises GradientError if what a backward solve begins with is not finite: no smaller step would help."""
    if not all(bool(torch.isfinite(leaf).all()) for leaf in a):
        raise GradientError(
            f"the gradient of the loss with respect to the state at t={t:.8g} is not finite",
            "losses with a finite gradient",
            "look at the loss for the square root or the logarithm of 0, or 0 / 0, there",
        )


def require_known(n: int, outputs: Sequence[Tensor], known: Sequence[Tensor], since: int) -> None:
    """Raises GradientError if f reads a tensor from step n on that it did not read in its first evaluation."""
    if outside(outputs, known, since) and (unknown := outside(outputs, known, since, thoroughly=True)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in unknown)
        raise GradientError(
            f"in step {n} the field reads tensors (of shape {shapes}) that need a gradient and were not read in step 0",
            "fields that read the same closed-over tensors at every step, and keep none that they make (as what "
            "torch.func.linearize returns does)",
            "pass them as weights, make the field an nn.Module, take torch.func.jvp in the place of linearize, or "
            "gradient='backprop'",
        )


@contextlib.contextmanager
def unhooked(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Without hooks on tensors: they are for the whole gradient, and would be run on each step's part of it, too.

    Raises:
        GradientError: the field goes back by itself, and for a whole backward pass alone.
    """
    hooked = [(tensor._backward_hooks, dict(tensor._backward_hooks)) for tensor in tensors if tensor._backward_hooks]
    for hooks, _ in hooked:
        hooks.clear()
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise GradientError(
            "the field calls torch.utils.checkpoint with use_reentrant=True, which refuses torch.autograd.grad",
            "torch.utils.checkpoint with use_reentrant=False",
            "take that, leave torch.utils.checkpoint out, or take gradient='backprop'",
        ) from error
    finally:
        for hooks, copies in hooked:
            hooks.update(copies)


def _retained() -> bool:
    """Whether the running backward pass was asked to keep what it needs for another one."""
    keeps_graph = getattr(_autograd, "_get_current_graph_task_keep_graph", None)  # since torch 2.5, not documented
    return True if keeps_graph is None else keeps_graph()


class _FixedStepSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Run, adjoint: Adjoint, count: int, course: StageChain | None, *tensors: Tensor
    ) -> Leaves:
        forward_mode_again()
        states, pair = adjoint.forth(run, tensors[:count])
        if run.replay is not None:
            run.replay.finish()
        ctx.run, ctx.adjoint, ctx.count, ctx.course = run, adjoint, count, course
        ctx.sketch = None if 0 in states else adjoint.sketch(tensors[:count])
        ctx.last = adjoint.last(states[run.grid.steps]) if run.grid.steps in states else None
        known = adjoint.witnessed(run, states, y0 := tensors[:count])
        ctx.known = None
        if known is not None and ordinary(known):
            ctx.known = sample(known, own=known is y0, whole=adjoint.known_whole)
        weights = tensors[count + (course is not None) :]
        # a reversible solver's y(t1) is in its pair
        keeps = {*adjoint.keeps(run)}
        # what the user can see, and so change in place, is saved by torch, which would notice
        ctx.states = [n for n in states if n in keeps and (n == 0 or n in run.grid.kept)]
        ctx.inner = {n: leaves for n, leaves in states.items() if n in keeps and n not in ctx.states}
        ctx.weights = tuple((id(tensor), tensor.dtype) for tensor in weights)  # the field keeps the tensors alive
        flat = [leaf for leaves in (*(states[n] for n in ctx.states), *pair) for leaf in leaves]
        ctx.save_for_backward(*flat, *weights)
        return stacked(run, states, copied=True)

    @staticmethod
    @as_raised
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and ctx.run.settled is not None and ctx.adjoint.differentiable:
            return _recorded(ctx, gradients)
        refuse_second_derivatives(ctx.adjoint.stats.gradient)
        run, count = dataclasses.replace(ctx.run, again=True), ctx.count
        tensors = saved_tensors.of(ctx)
        count_saved = len(tensors) - len(ctx.weights)
        saved = [leaf.detach() for leaf in tensors[:count_saved]]  # y0 among them may need a gradient
        groups = [tuple(saved[i : i + count]) for i in range(0, len(saved), count)]
        saved = SavedStates(
            ctx.inner | dict(zip(ctx.states, groups, strict=False)),
            tuple(groups[len(ctx.states) :]),
            ctx.sketch,
            ctx.last,
            ctx.known,
        )
        if not _retained():
            ctx.inner, ctx.last, ctx.known = {}, None, None  # so that a backward pass can free what it has used
        carried = [g.to(kind) for g, kind in zip(gradients, run.layout.carried, strict=True)]
        by_index = dict(zip(run.grid.kept, zip(*carried, strict=True), strict=True))
        course: StageChain | None = ctx.course
        every = tensors[count_saved:] if course is None else course.every
        sums, steps = Sums(run.field), run.grid.steps

        @contextlib.contextmanager
        def surrounded(first: int, last: int) -> Iterator[None]:
            """What the steps from last down to first need around them, and no others: those above are done."""
            ns = range(ctx.adjoint.again_from(first), last)
            if run.surrounded is not None:
                around = run.surrounded()
            elif run.settled is None:
                run.field.settle(ns, steps)
                around = run.replay.back(ns)
            else:
                around = run.settled.back(None if len(ns) == steps else [b for n in ns for b in run.direct.called(n)])
            with around, unhooked(every):
                yield

        way = BackwardSweep(lambda: ctx.adjoint.back(run, saved, by_index, sums), sums, surrounded, steps)
        if course is not None:
            course.begin(way)
        return _returned(ctx, way, gradients)


def _returned(ctx: Any, way: BackwardSweep | RecordedSweep, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What the node returns: its own part of the way."""
    course: StageChain | None = ctx.course
    if course is None:
        below = way.reach(0)
        assert below is not None
    else:
        way.reach(course.top)
        below = *(None,) * ctx.count, gradients[0].new_zeros((), dtype=torch.float32)
    needs = zip(ctx.weights, ctx.needs_input_grad[4 + len(below) :], strict=True)
    return (None, None, None, None, *below, *[way.gradient(weight) if want else None for weight, want in needs])


def _recorded(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradient with a graph of its own: the steps run again from y0 and are recorded."""
    course: StageChain | None = ctx.course
    if course is None:
        saved = saved_tensors.of(ctx)
        y0, weights = saved[: ctx.count], saved[len(saved) - len(ctx.weights) :]
    else:
        y0, weights = course.y0, course.every
    with ctx.run.settled.back():
        states, _ = loop(ctx.run, y0)
        ctx.adjoint.look(ctx.run, y0, states, ctx.last)
        outputs = stacked(ctx.run, states)
        derivatives = torch.autograd.grad(outputs, [*y0, *weights], gradients, create_graph=True, allow_unused=True)
    way = RecordedSweep(derivatives[: len(y0)], dict(zip(map(id, weights), derivatives[len(y0) :], strict=True)))
    if course is not None:
        course.begin(way)
    return _returned(ctx, way, gradients)
