"""Units of work on workers that may be lost: each is done once, or said to be left."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol

from odenet._errors import OdenetError
from odenet._jobs.cells.executor import ForeignPool, WorkerPool

ALONE = 2  # times that a unit may take its worker with it while no other runs

Measure = Callable[[Any, Sequence[Any]], Iterable[Any]]
Described = Callable[[], Mapping[str, str]]


class UnitPlan(Protocol):
    """What cells belong to, and how they are grouped for workers."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends that are needed."""
        ...

    def units(self, cells: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Cells that are measured together."""
        ...


class Spread:
    """Results of units as they come, in any order.

    A worker that is lost (killed, out of memory, a machine that went away) takes results with it that were under way
    there. They are done again: first each alone, since one of them may be what kills workers, and would take the
    others' work with it each time.

    Args:
        pool: the workers.
        measure: `measure(plan, cells)` gives a result for each cell; a function that can be pickled.
        plan: what the cells belong to.
        describe: told on each worker what machine it is.
        lost: told of a unit that is given up, with the error.
    """

    def __init__(
        self,
        pool: WorkerPool,
        measure: Measure,
        plan: Any,
        describe: Described,
        lost: Callable[[Sequence[Any], BaseException], None],
    ) -> None:
        self.pool, self.measure, self.plan, self.describe, self.lost = pool, measure, plan, describe, lost
        self.machines: list[Mapping[str, str]] = []

    def results(self, units: Iterable[Sequence[Any]]) -> Iterator[Any]:
        """Each result as soon as its unit is done.

        Raises:
            OdenetError: what `measure` raised; or the executor of a caller broke, who alone can make another.
        """
        waiting, suspects = deque(enumerate(map(tuple, units))), deque[tuple[int, tuple[Any, ...]]]()
        running: dict[Future[Any], tuple[int, tuple[Any, ...]]] = {}
        failed_alone: Counter[int] = Counter()
        while waiting or suspects or running:
            alone = bool(suspects)
            source = suspects if alone else waiting
            while source and len(running) < (1 if alone else self.pool.workers):
                numbered = source.popleft()
                try:
                    running[self.pool.submit(_unit, self.measure, self.plan, numbered[1], self.describe)] = numbered
                except BrokenExecutor as error:  # it broke since; the unit has not begun
                    source.appendleft(numbered)
                    if running:
                        break  # those that broke with it are seen first
                    self._renew(error)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            broken: BaseException | None = None
            for future in done:
                number, unit = running.pop(future)
                try:
                    rows, machine = future.result()
                except OdenetError:
                    raise
                except Exception as error:  # each library has its own for a worker that is lost
                    broken = error if isinstance(error, BrokenExecutor) else broken
                    failed_alone[number] += alone
                    if failed_alone[number] >= ALONE:
                        self.lost(unit, error)
                    else:
                        suspects.append((number, unit))
                    continue
                if machine not in self.machines:
                    self.machines.append(machine)
                yield from rows
            if broken is not None:
                self._renew(broken)

    def _renew(self, error: BaseException) -> None:
        if isinstance(self.pool, ForeignPool):
            raise OdenetError(
                f"the executor lost a worker and is broken ({error})",
                "an executor that goes on, or the name of one, such as executor='processes'",
                "what is not measured is done with a new executor",
            ) from error
        self.pool.renew()


def _unit(measure: Measure, plan: Any, cells: Sequence[Any], describe: Described) -> tuple[list[Any], Any]:
    """The function that a worker calls with the cells of a unit."""
    return list(measure(plan, cells)), dict(describe())
