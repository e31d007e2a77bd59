"""Running a piece of the field again as it ran before: random state, buffers, autocast.

Memory-free gradients evaluate f again. Dropout must draw the same mask, BatchNorm must not count the batch twice, and
mixed precision must be that of the forward pass. `.training` is never touched.

Over 250 lines: random state, buffers and what surrounds f are taken and put back around the same evaluation.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from odenet import GradientError
from odenet_torch.field import kinks, late_writes, linearity, random_state, saved_tensors, switches
from odenet_torch.field.called_modules import (
    ModuleSnapshot,
    Owned,
    buffer_of,
    changed,
    held,
    indifferent,
    require_held,
    require_same,
    require_whole,
    uncached,
    within,
)
from odenet_torch.field.differentiating import Gradients, fake, no_values, unseen
from odenet_torch.field.escapes import marked, require_gone
from odenet_torch.field.field import Field
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.jumps import DIVIDING, JUMPING, Watch
from odenet_torch.field.looked import Looked, Names
from odenet_torch.field.places import CachedResults
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.shared_hooks import on_each_call, uncounted
from odenet_torch.field.side_results import Root, SideResults, recorded
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.field.surroundings import differences, looker, no_trace, put_back, reach
from odenet_torch.field.witness import amplified
from odenet_torch.field.written_on import sampled, version, writes

Result = TypeVar("Result")
Key = tuple[int, bool, float]
"""An evaluation of the forward pass: step, whether of a reversed step, and which of the step's."""
Module = tuple[str, nn.Module]
"""A module that f calls, with the name that an error gives it."""
Place = tuple[int, float, int]
"""Step, position in it, and the number of steps: what tells which modules f calls."""

_EVERY = -1  # in the place of a step
# by training flag: modules that did not change their buffers when they ran first
_STEADY: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}
_FUNCTIONS = Looked()
"""Parts of fields that were run again once, and are functions of their inputs."""
_FORGETFUL = Looked()
"""Those that were seen not to read what they leave from one evaluation to the next."""
_PLAIN = Names()
"""Of buffers that were seen to need no gradient."""


def autocasts(device: torch.device) -> list[tuple[str, bool, torch.dtype]]:
    """Of a device and the host: whether autocast is on, and its number type."""
    return [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in dict.fromkeys((device.type, "cpu"))
        if kind in ("cpu", "cuda")
    ]


_AS_IT_IS = contextlib.nullcontext()


class Replay:
    """What the evaluations of one forward pass read beside their arguments, and the way to read it again.

    Args:
        device: of the state.
        steps: of the forward pass.
        modules: the modules that f calls at a place; more may be noticed later (see `notice`).
        handed: the tensors handed to f in a step, beside its state.
        roots: what f is made of at a place: what it may read beside its arguments is reached from there.
        cut: whether the forward pass keeps no graph.
        exact: whether it matters that f draws random numbers, and not whether they are drawn again alone: what another
            thread has drawn in the meantime is then told from that.
    """

    calls = True
    """Whether f calls its modules, with their hooks, and not their parts alone."""

    def __init__(
        self,
        device: torch.device,
        steps: int,
        modules: Callable[[int, float, int], Sequence[Module]],
        handed: Callable[[int, int], Iterable[Tensor]],
        roots: Callable[[int, float, int], Sequence[Root]],
        cut: bool = False,
        exact: bool = False,
    ) -> None:
        self.device = device
        self.steps = steps
        self.exact = exact
        self.modules = modules
        self.handed = handed
        self.roots = roots
        self.sides = SideResults(cut)
        self.read: dict[int, list[tuple[Tensor, int, Any]]] = {}
        self.noticed: list[Module] = []
        self.snapshots: dict[int, ModuleSnapshot] = {}
        self.of_step: dict[int, set[int]] = {}
        self.random: dict[Key, list[Tensor]] = {}
        self.buffers: dict[Key, list[tuple[Owned, Tensor]]] = {}
        self.unrecorded = False  # whether f is to run without recording of gradients, for a look
        self.uncached = False  # whether parametrize.cached() is active around the solve
        self.suspects: Sequence[Owned] = ()
        self.with_graph: list[Owned] = []
        """Of these buffers those that an evaluation has left with a graph."""
        self.moving = False  # whether some module changes its buffers
        self.leaving: dict[int, Callable[[], bool] | None] = {}
        """By `id` of what f is made of, where it leaves something: what looks at its last evaluation, if there is one
        after the second."""
        self.looked: dict[int, bool] = {}  # by `id` of what f is made of: whether it may do as follows
        self.late: set[int] = set()
        """Steps that may write on what they have saved, and so are to run to their end (see `late_writes`)."""
        self.checked: set[int] = set()
        """Steps in which a part of f ran for the first time in its life."""
        self.before: list[tuple[Owned, Tensor, Any, Tensor | None]] = []
        self.last = random_state.state(device)
        self.autocast = autocasts(device)
        self.halves = False  # whether f is handed states in 16 bits, and may compute in these

    @classmethod
    def of(cls, field: Field, layout: Layout, steps: int, *, cut: bool = False, exact: bool = False) -> Replay:
        """The record of a forward pass that is about to begin."""
        replay = cls(layout.device, steps, field.modules, field.handed, field.roots, cut, exact)
        replay.calls = field.calls
        replay.halves = not HALF.isdisjoint(layout.dtypes)
        return replay

    def watch(self, tensors: Iterable[Tensor], step: int = _EVERY) -> None:
        """Tensors that f reads in a step, and that must not be written on before the backward pass."""
        # leaves that f reads in every step are looked at by value where they were found
        self.read[step] = [(x, version(x), None if step == _EVERY else sampled(x)) for x in tensors]

    @contextlib.contextmanager
    def notice(self) -> Iterator[None]:
        """Modules that are called while this is entered belong to f: a closure may call some."""
        if self.modules(0, 0.0, self.steps):  # f is made of modules itself
            yield
            return

        thread = threading.get_ident()

        def on_call(module: nn.Module, inputs: Any) -> None:
            if threading.get_ident() != thread:  # the hook is on all modules of the process
                return
            if not any(module is inner for _, outer in self.noticed for inner in outer.modules()):
                named = (type(module).__name__, module)
                self.noticed.append(named)
                self.before += self._look([named])

        with on_each_call(on_call):
            yield

    def first(self, key: Key, place: Place, evaluate: Callable[[], Leaves], y: Leaves = ()) -> Leaves:
        """An evaluation of the forward pass, at y."""
        modules, roots = self.modules(*place), self.roots(*place)
        self.before = self._look([*modules, *self.noticed])
        new = [(name, module, held(module)) for name, module in modules if id(module) not in self.snapshots]
        met = self.sides.begin(key[0], roots)
        if met:
            needed = tuple([x.requires_grad for x in self.handed(key[0], self.steps)])
            for around in met:
                if not isinstance(around.root, nn.Module):
                    around.reach.handed = needed
        generators = [x for _, root in roots for x in self.sides.around[id(root)].reach.generators]
        before, outside = [*map(random_state.of, generators)], random_state.outside()
        out = evaluate()
        for name, module, parameters in new:
            require_whole(name, module, itself=self.calls)
            require_held(name, module, parameters)
        drawn = random_state.outside() != outside
        if drawn or (before and before != [*map(random_state.of, generators)]):
            self._require_seeded(key, place, evaluate, [*generators, *(random_state.GLOBAL if drawn else ())])
        state = random_state.state(self.device)
        if not random_state.same(state, self.last):
            if not self.exact or self._draws(key, place, evaluate):
                self.random[key] = self.last
            self.last = state
        if self.before:
            self._keep_changed(key)
        if key[0] not in self.read:
            self.watch(self.handed(key[0], self.steps), key[0])
        fresh: list[Root] = [
            (around.name, around.root)
            for around in met
            if callable(around.root)
            and not isinstance(around.root, nn.Module)
            and not _FUNCTIONS.has(around.root, around.reach)
        ]
        for name, module in (*modules, *self.noticed):
            if id(module) not in self.snapshots:
                if not modules:  # it was noticed
                    require_whole(name, module)
                self.snapshots[id(module)] = ModuleSnapshot.now(name, module)
                if not _FUNCTIONS.has(module, self.reached(module)):
                    fresh.insert(0, (name, module))
            self.of_step.setdefault(key[0], set()).add(id(module))
        if fresh:
            self.checked.add(key[0])
            self._check(key, place, fresh, out, evaluate, y)
        for root in roots:
            if self.sides.evaluations[id(root[1])] == 2:
                if self._require_forgetful(key, place, root, out, evaluate):
                    self.leaving[id(root[1])] = None
            elif id(root[1]) in self.leaving:
                latest = functools.partial(self._require_forgetful, key, place, root, _values(out), evaluate)
                self.leaving[id(root[1])] = latest
        if not self.sides.cut and key[0] not in self.late:
            self._look_for_late(key, place, out, evaluate, y)
        if met:
            self.sides.look(met, y, lambda: self._quietly(key, place, evaluate))
            if self.sides.cut and key in self.buffers:
                self._refuse_graphs(key, place, y, evaluate)
        return out

    def again(self, key: Key, place: Place, stages: int, evaluate: Callable[[], Result]) -> Result:
        """An evaluation of the backward pass, as the forward evaluation at the same place of the step was.

        A backward pass of other steps than the forward pass's reads those of the step that holds its own.
        """
        if self.sides.filled or self.sides.caches:
            evaluate = functools.partial(self.sides.logged, evaluate)
        if not (self.random or self.moving):
            return evaluate()
        step, reverse, rank = key
        step = step * self.steps // place[2]
        for known in ((step, reverse, rank), (step, False, stages - 1 - rank), (step, False, 0)):
            key = known
            if known in self.random or known in self.buffers:
                break
        with self._swapped(self._calls(place), self.buffers.get(key, ())):
            if key in self.random:
                random_state.restore(self.device, self.random[key])
            return evaluate()

    @contextlib.contextmanager
    def back(self, steps: Iterable[int] | None = None, since: int | None = None) -> Iterator[None]:
        """The backward pass: under the forward pass's autocast, and leaving the random state as it is.

        Args:
            steps: those that are to run again; None for all.
            since: see `Surroundings.again`.

        Raises:
            GradientError: what is to run again is not what it was in the forward pass.
        """
        ns = set(range(self.steps) if steps is None else steps)
        copied = {
            (id(owner), name) for key, tensors in self.buffers.items() if key[0] in ns for (owner, name), _ in tensors
        }
        noticed = {id(module) for _, module in self.noticed}
        for key in {key for n in ns for key in self.of_step.get(n, ())}:
            self.snapshots[key].require_unchanged(copied, moves=key not in noticed)
        watched = (entry for n in (*ns, _EVERY) for entry in self.read.get(n, ()))
        if any(version(x) != before or (sample is not None and sampled(x) != sample) for x, before, sample in watched):
            raise changed("a tensor that the field reads was modified by an inplace operation")
        state = random_state.state(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.forth())
            stack.enter_context(self.sides.back(ns, since))
            try:
                yield
            finally:
                random_state.restore(self.device, state)

    def forth(self) -> contextlib.AbstractContextManager[Any]:
        """Under the forward pass's autocast, without its cache, and without that of `parametrize.cached()`.

        A cast of weights, or a parametrized weight, that is made without a graph would be found again where a graph is
        needed; one that is made in the first of several steps would not be there when another runs again.
        """
        casts = any([enabled or torch.is_autocast_enabled(kind) for kind, enabled, _ in self.autocast])
        return self._forth() if casts or parametrize._cache_enabled else _AS_IT_IS

    @contextlib.contextmanager
    def _forth(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self.uncached = self.uncached or parametrize._cache_enabled > 0
            stack.enter_context(uncached())
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    def _calls(self, place: Place) -> list[Module]:
        return [*self.modules(*place), *self.noticed]

    def _look(self, modules: Sequence[Module]) -> list[tuple[Owned, Tensor, Any, Tensor | None]]:
        """The buffers of these modules; a copy where what is in them matters to f and may change."""
        buffers = []
        for _, module in modules:
            for inner in within(module):
                if not inner._buffers:  # the most
                    continue
                if indifferent(inner):
                    self.moving = True
                    continue
                copy = inner not in _STEADY[inner.training]
                for name, buffer in inner._buffers.items():
                    if buffer is not None:
                        value = buffer.detach().clone() if copy else None
                        buffers.append(((inner, name), buffer, writes(buffer), value))
        return buffers

    def _keep_changed(self, key: Key) -> None:
        kept = []
        for (module, name), buffer, before, value in self.before:
            if buffer_of(module, name) is buffer and writes(buffer) == before:
                continue
            if value is None:
                raise GradientError(
                    f"{type(module).__name__} changed its buffer {name!r} now, and did not when it ran first",
                    "modules that change their buffers in every training pass or in none",
                    "take gradient='backprop'",
                )
            kept.append(((module, name), value))
        if kept:
            self.buffers[key], self.moving = kept, True
            if self.uncached:
                raise GradientError(
                    f"{type(kept[0][0][0]).__name__} changes its buffer {kept[0][0][1]!r} in each evaluation, where "
                    "torch.nn.utils.parametrize.cached() would have it changed once",
                    "modules that change no buffers, such as parametrizations in eval()",
                    "solve outside of parametrize.cached(), or take gradient='backprop'",
                )
        moving = {id(module) for (module, _), _ in kept}
        for (module, _), *_ in self.before:
            if id(module) not in moving:
                _STEADY[module.training].add(module)

    def _refuse_graphs(self, key: Key, place: Place, y: Leaves, evaluate: Callable[[], Leaves]) -> None:
        """Looks whether a buffer that f has changed depends on what has a gradient, which a pass without a graph loses.

        Raises:
            GradientError: it does.
        """
        sets = [_PLAIN.of(module, self.reached(module)) for _, module in self._calls(place)]
        names = {id(module): name for _, outer in self._calls(place) for name, module in outer.named_modules()}
        # a name stands for the same buffer in each of these
        kept = [o for o, _ in self.buffers[key] if any(f"{names[id(o[0])]}.{o[1]}" not in known for known in sets)]
        if not kept:
            return
        with recorded(y):
            self.suspects = kept
            self._quietly(key, place, evaluate)
            self.suspects = ()
        for module, name in self.with_graph:
            raise GradientError(
                f"the gradient of the buffer {name} of {type(module).__name__}, which keeps a tensor that needs one, "
                "in a forward pass that keeps no graph",
                "buffers that need no gradient",
                "keep value.detach() there; or take gradient='backprop', or with equal steps gradient='checkpoint'",
            )
        for known in sets:
            known |= {f"{names[id(module)]}.{name}" for module, name in kept}

    @contextlib.contextmanager
    def _swapped(self, modules: Sequence[Module], copies: Sequence[tuple[Owned, Tensor]]) -> Iterator[None]:
        """Copies in the place of buffers that f changes: as they were before, so that nothing is counted twice."""
        values = {(id(module), name): value for (module, name), value in copies}
        originals = []
        for _, module in modules:
            for inner in within(module):
                if inner._buffers and (indifferent(inner) or inner not in _STEADY[inner.training]):
                    originals += [((inner, name), buffer) for name, buffer in inner._buffers.items()]
        for (module, name), original in originals:
            copy = values.get((id(module), name), original)
            module._buffers[name] = None if copy is None else copy.detach().clone()
        try:
            yield
        finally:
            for module, name in self.suspects:
                buffer = buffer_of(module, name)
                if buffer is not None and buffer.requires_grad:
                    self.with_graph.append((module, name))
            for (module, name), original in reversed(originals):
                module._buffers[name] = original

    def reached(self, root: object) -> ReachableObjects:
        """What could be reached from a part of f before it ran in this pass; of a module that was noticed, now."""
        around = self.sides.around.get(id(root))
        return reach(root) if around is None else around.reach

    def _roots(self, place: Place) -> list[Root]:
        return [*self.roots(*place), *self.noticed]

    @contextlib.contextmanager
    def _once_more(self, place: Place) -> Iterator[None]:
        """Inside, f may run once more: it leaves nothing.

        What was looked at before, as another variant, finds what it found in its first run of this pass. At the very
        first look it finds what that has left, so that a block that counts is known for one.
        """
        with no_trace([root for _, root in self._roots(place)]), uncounted():
            for _, root in self.roots(*place):
                around = self.sides.around[id(root)]
                if _FUNCTIONS.knows(root, around.reach):
                    put_back([change for change in around.differences() if not isinstance(change[0], CachedResults)])
            yield

    @contextlib.contextmanager
    def _alone(self, place: Place) -> Iterator[None]:
        """The same, with copies of the tensors that f has written on."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._once_more(place))
            for _, root in self.roots(*place):
                around = self.sides.around[id(root)]
                stack.enter_context(around.copied([held for _, held in around.written_on()]))
            yield

    def _quietly(self, key: Key, place: Place, evaluate: Callable[[], Result]) -> Result:
        """An evaluation of the forward pass once more, with its random state, which is put back."""
        with unseen(), uncounted():
            return self._replayed(key, place, evaluate)

    def _replayed(self, key: Key, place: Place, evaluate: Callable[[], Result]) -> Result:
        state = random_state.state(self.device)
        try:
            return self.again(key, place, 1, evaluate)
        finally:
            random_state.restore(self.device, state)

    def _require_forgetful(
        self, key: Key, place: Place, root: Root, out: Leaves, evaluate: Callable[[], Leaves]
    ) -> bool:
        """Looks whether f, which leaves something, returns in an evaluation what it would return in its first.

        What it leaves is not known by evaluation, so that each one of the way back finds what stood there before all,
        or what the last one left. The second evaluation and the last are looked at, once in the life of f.

        Returns:
            Whether it leaves something, of which that is not known.

        Raises:
            GradientError: something else came out.
        """
        around = self.sides.around[id(root[1])]
        # a function gives by its cache what it would compute
        changes = [change for change in around.differences() if not isinstance(change[0], CachedResults)]
        if not changes or _FORGETFUL.has(root[1], around.reach):
            return False
        places = [place for place in around.reach.places if not isinstance(place, CachedResults)]
        now = [place.contents() for place in places]
        put_back(changes)
        try:
            with around.copied([held for _, held in around.written_on()]), torch.no_grad():
                again = self._quietly(key, place, evaluate)
        finally:
            put_back(differences(places, now))
        self._require_same(root[0], out, again)
        return True

    def require_steady(
        self, key: Key, since: Key, place: Place, name: str, out: Leaves, evaluate: Callable[[], Leaves]
    ) -> None:
        """Looks whether f, which changes buffers, returns what it returned with those of an earlier evaluation.

        Raises:
            GradientError: something else came out.
        """
        state = random_state.state(self.device)
        with self._swapped(self._calls(place), self.buffers[since]), torch.no_grad(), unseen():
            if key in self.random:
                random_state.restore(self.device, self.random[key])
            again = evaluate()
            random_state.restore(self.device, state)
        self._require_same(name, out, again)

    def finish(self, outputs: Iterable[Tensor] = ()) -> None:
        """The forward pass has ended, with these outputs and their graph.

        Raises:
            GradientError: f reads what its earlier evaluations left.
        """
        for key, latest in self.leaving.items():
            if latest is not None:
                latest()
            _FORGETFUL.add((around := self.sides.around[key]).root, around.reach)
        self.leaving.clear()
        self.sides.finish(outputs)

    def _draws(self, key: Key, place: Place, evaluate: Callable[[], Leaves]) -> bool:
        """Whether it is f that has drawn random numbers."""

        def run() -> None:
            with no_trace([root for _, root in self._roots(place)]), torch.no_grad(), unseen():
                self.again(key, place, 1, evaluate)

        return random_state.draws(run, functools.partial(random_state.read, self.device))

    def _require_seeded(self, key: Key, place: Place, evaluate: Callable[[], Leaves], generators: list[Any]) -> None:
        """Looks whether f, in whose run somebody has drawn from generators, seeds them itself or did not draw at all.

        Raises:
            GradientError: it does not, and would draw other numbers when it runs again.
        """
        roots = self._roots(place)

        def run() -> None:
            with no_trace([root for _, root in roots]), torch.no_grad():
                self._quietly(key, place, evaluate)

        moved = random_state.moved(run, lambda: [*map(random_state.of, generators)])
        if moved:
            raise _drawn(roots[0][0], generators[moved[0]])

    def _look_for_late(self, key: Key, place: Place, out: Leaves, evaluate: Callable[[], Leaves], y: Leaves) -> None:
        """Whether a step's kernels may write on what they have saved; a field is run once more where it is not known.

        Raises:
            GradientError: something else came out.
        """
        roots = self._roots(place)
        if not self.looked.keys() >= {id(root) for _, root in roots}:
            self._look_once(key, place, roots, out, evaluate, y)
        if key in self.random or any([self.looked[id(root)] for _, root in roots]):
            self.late.add(key[0])

    def _look_once(
        self, key: Key, place: Place, roots: Sequence[Root], out: Leaves, evaluate: Callable[[], Leaves], y: Leaves
    ) -> None:
        fresh = [root for root in roots if late_writes.known(root[1], self.reached(root[1])) is None]
        if fresh:
            with self._once_more(place), recorded(y):
                held = looker([reach(root) for _, root in roots])
                again, late = late_writes.watched(fresh[0][0], lambda: self._replayed(key, place, evaluate), held)
            self._require_same(fresh[0][0], out, again)
            for _, root in fresh:
                late_writes.remember(root, late, self.reached(root))
        self.looked |= {id(root): bool(late_writes.known(root, self.reached(root))) for _, root in roots}

    def _require_same(
        self, name: str, out: Leaves, again: Leaves, off: Callable[[], Sequence[float]] | None = None
    ) -> None:
        """See `require_same`."""
        casts = any([enabled for _, enabled, _ in self.autocast])
        require_same(name, out, again, off, halves=self.halves or casts)

    def _require_same_unrecorded(
        self, name: str, key: Key, place: Place, out: Leaves, evaluate: Callable[[], Leaves], y: Leaves
    ) -> None:
        """Looks whether f is the same where no gradient is recorded, as steps of the forward pass may run.

        Raises:
            GradientError: it is not, as it asks torch.is_grad_enabled().
        """
        self.unrecorded = True
        try:
            with torch.no_grad():
                again = self._quietly(key, place, evaluate)
                self._require_same(name, out, again, self._amplified(key, place, evaluate, y))
        finally:
            self.unrecorded = False

    def _amplified(
        self, key: Key, place: Place, evaluate: Callable[[], Leaves], y: Leaves, alone: Any = _AS_IT_IS
    ) -> Callable[[], Sequence[float]]:
        """By how much f may be off by rounding, if that is asked for."""

        def value(at: Leaves) -> Leaves:
            return _values(self._quietly(key, place, lambda: switches.elsewhere(y, at, evaluate)))

        def off() -> Sequence[float]:
            with alone:
                return amplified(value, y)

        return off

    def _check(
        self, key: Key, place: Place, fresh: Sequence[Root], out: Leaves, evaluate: Callable[[], Leaves], y: Leaves
    ) -> None:
        """Once in the life of a part of f: run f again at y, look at what it does, and compare.

        Raises:
            GradientError: something else came out; it writes on what its gradient reads; it keeps a part of its graph,
                or a hook, where that cannot be found.
        """
        name = fresh[0][0]
        if fake():
            raise no_values(f"the first pass of {name}, which is looked at by value,", "fields that have run before")
        watch, seen = Watch(y), None
        hooks = [len(leaf._backward_hooks or ()) for leaf in y]
        modules = [inner for _, root in fresh for outer in self.reached(root).modules for inner in outer.modules()]
        leaves = [x for _, root in fresh for _, x in self.reached(root).watched if isinstance(x, Tensor) and x.is_leaf]
        gradients = Gradients(x for xs in (leaves, *[module.parameters() for module in modules]) for x in xs)
        with self._alone(place):
            try:
                with watch:
                    seen = self._quietly(key, place, lambda: marked(evaluate, y))
                again = seen.out
            except RuntimeError:  # it takes derivatives with torch.func, or cannot be recorded at a leaf
                with torch.no_grad():
                    again = self._quietly(key, place, evaluate)
        if gradients.changed() and gradients.added_to(lambda: self._quietly(key, place, evaluate)):
            raise _adds_to_gradients(name)
        if seen is not None:
            if seen.operation is not None:
                raise saved_tensors.refusal(name, seen.operation)
            require_gone(name, seen.marks)
        if hooks != [len(leaf._backward_hooks or ()) for leaf in y]:
            raise hooks_its_state(name)
        self._require_same(name, out, again, self._amplified(key, place, evaluate, y, self._alone(place)))
        with self._alone(place):  # after the look at what is kept, which it would replace
            self._require_same_unrecorded(name, key, place, out, evaluate, y)
            # the last look, since what an evaluation elsewhere leaves is not to be looked at
            jump = switches.seen_to_jump(watch, y, lambda: self._quietly(key, place, evaluate))
        back = linearity.Pullback(linear=True, jumps=False)
        if seen is not None and (seen.declares or linearity.hooks_a_module(modules)):
            handed = self.handed(key[0], self.steps)
            with self._alone(place), linearity.keeping_gradients(modules):
                back = self._quietly(key, place, lambda: linearity.pullback(evaluate, y, handed))
        for _, root in fresh:
            _FUNCTIONS.add(root, self.reached(root))
            if not back.linear:
                linearity.UNEVEN.add(root, self.reached(root))
            if jump or back.jumps:
                JUMPING.add(root, self.reached(root))
            if back.kinked or kinks.within(watch):
                kinks.KINKED.add(root, self.reached(root))
            if watch.divides:
                DIVIDING.add(root, self.reached(root))


def _values(out: Leaves) -> Leaves:
    return tuple(leaf.detach() for leaf in out)


def _adds_to_gradients(name: str) -> GradientError:
    return GradientError(
        f"{name} calls backward(), which adds to the .grad of its parameters whenever it runs, and is to run again",
        "torch.autograd.grad(energy, x), and energy.backward(inputs=[x])",
        "take one of these within the field, or gradient='backprop'",
    )


def hooks_its_state(name: str) -> GradientError:
    """The error for a hook that would be called for each part of the gradient by a state."""
    return GradientError(
        f"{name} registers a hook on its input, which is a state of the solve, and is to run again",
        "hooks on tensors that the block computes",
        "hook x * 1 in the place of x, or take gradient='backprop'",
    )


def _drawn(name: str, generator: object) -> GradientError:
    own = isinstance(generator, torch.Generator)
    where = "is not a function of its inputs: it draws random numbers from a torch.Generator of its own"
    return GradientError(
        f"{name} {where if own else 'draws random numbers from Python or NumPy'}, which are not drawn again as before",
        "random numbers of torch's own generator",
        "take torch.rand in its place, or gradient='backprop'",
    )
