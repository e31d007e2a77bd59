"""The accepted steps of a solve with an event, each looked at before anything is made of it.

What lies within steps is looked at for several of them together, since a look costs little more for eight steps than
for one. The ends of steps are looked at as they come, but where the condition is far from its root, so that a solve
goes on beyond its event only where the condition changes there and back within a step, or much faster than before: at
most seven steps, which are then as if they had never been taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from odenet import Result
from odenet_torch.field.memory import overwritten
from odenet_torch.steps.events import Crossing, Watch
from odenet_torch.steps.size_control import AcceptedStep, AdaptiveLoop

Looked = tuple[AcceptedStep, "Crossing | None"]
_Counts = tuple[int, int, int]
_Waiting = tuple[AcceptedStep, _Counts, int]


def watched(
    loop: AdaptiveLoop, watch: Watch, steps: Iterator[AcceptedStep], *, together: bool
) -> Iterator[tuple[AcceptedStep, Crossing | None]]:
    """The steps up to the event, the last one with where it changes. The loop is left as it was after that one.

    Args:
        loop: that makes the steps.
        watch: of the event.
        steps: as they are accepted.
        together: whether steps may be looked at after later ones were taken.
    """
    waiting: list[_Waiting] = []

    def looked() -> tuple[list[Looked], bool]:
        """The steps that wait, up to a change, and whether there is one."""
        ready: list[Looked] = []
        if any(step.y[0]._version != writes for step, _, writes in waiting):
            raise overwritten()
        quiet = watch.quiet([step for step, *_ in waiting]) if waiting else 0
        for i, (step, counts, _) in enumerate(waiting):
            crossing = None if i < quiet else watch.crossing(step)
            if crossing is not None or watch.undefined:
                _end(loop, counts, watch.undefined)
                return ready if watch.undefined else [*ready, (step, crossing)], True
            ready.append((step, None))
        waiting.clear()
        return ready, False

    while True:
        try:
            step = next(steps, None)
            later = together and step is not None and watch.put_off(step)
        except Exception:  # of the field or the condition, which need not be defined beyond an event
            ready, ended = looked()
            if not ended:
                raise
            yield from ready
            return
        if step is not None and later:
            assert step.rows is not None
            step.rows = step.rows.clone()  # by then they would be those of the next step
            waiting.append((step, _counts(loop), step.y[0]._version))
            if len(waiting) < watch.most:
                continue
            step = None
        elif step is None:
            yield from looked()[0]
            return
        ready, ended = looked()
        yield from ready
        if ended:
            return
        if step is None:
            continue
        crossing = watch.crossing(step)
        if watch.undefined and crossing is None:
            _end(loop, _counts(loop), True)
            return
        yield step, crossing
        if crossing is not None:
            return


def _counts(loop: AdaptiveLoop) -> _Counts:
    return loop.n, loop.tried, loop.evaluations


def _end(loop: AdaptiveLoop, counts: _Counts, undefined: bool) -> None:
    """The loop as it was after a step; before it, where the event's condition is NaN."""
    loop.n, loop.tried, loop.evaluations = counts
    loop.failed = Result.EVENT_NAN if undefined else None
    loop.n -= undefined
