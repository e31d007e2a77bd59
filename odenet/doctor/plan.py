"""A plan: what each gradient method takes on a model and a batch, and which one is the fastest that is good enough."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from odenet._backend.sample import Profile
from odenet._errors import InputError
from odenet._gradients.auto import Auto, exact
from odenet._gradients.exact import Backprop
from odenet._gradients.record import Gradient
from odenet._report.units import aligned, error, seconds, size

NOISE = 1.05
"""How much longer than the fastest counts as equally fast; of these the most exact is taken."""


@dataclass(frozen=True)
class Plan:
    """What every gradient method takes on a model and a batch, the choice, and why the others lost.

    `print(plan)` shows the table; `plan.gradient` is the record, and `plan.apply(model)` gives it to all solves in one.

    Args:
        backend, solver: by name; all solvers in the model.
        steps: the most of one solve.
        dtype: of the model.
        profiles: a row a method.
        tolerance: the relative gradient error allowed.
        memory: bytes allowed, or None.
        reference: what the gradients were compared with.
        counted: how bytes were counted.
        zero: whether the exact gradient of the solves was zero, or not finite, so that no error could be measured.

    Raises:
        InputError: no method fits the memory and the tolerance: the least memory that is possible, and by what.
    """

    backend: str
    solver: str
    steps: int
    dtype: str
    profiles: tuple[Profile, ...]
    tolerance: float = 1e-2
    memory: int | None = None
    reference: str = "checkpoint"
    counted: str = ""
    zero: bool = False

    def __post_init__(self) -> None:
        if any(self._qualifies(profile) for profile in self.profiles):
            return
        good = [profile for profile in self.profiles if profile.trouble is None and self._exact_enough(profile)]
        ran = [profile for profile in self.profiles if profile.trouble is None]
        if good:
            least = min(good, key=lambda profile: profile.peak_bytes or 0)
            near = _nearest(self.by_speed)
            fitting = "" if near is None else f"; of those that fit, {near.label} is {error(near.gradient_error)} off"
            raise InputError(
                f"memory={self.memory} bytes for a gradient within {error(self.tolerance)}{fitting}",
                f"at least {least.peak_bytes} bytes ({size(least.peak_bytes)}), which {least.label} needs",
                "give more memory or a larger tolerance, or take a smaller batch",
            )
        near = _nearest(ran)
        reached = "none ran to its end" if near is None else f"{near.label} reached {error(near.gradient_error)}"
        troubles = "; ".join(f"{profile.label}: {profile.trouble}" for profile in self.profiles if profile.trouble)
        raise InputError(
            f"tolerance={self.tolerance:g} with these methods: {reached}{f' ({troubles})' if troubles else ''}",
            "a method within it",
            "let checkpoint be among them, or give a larger tolerance",
        )

    @property
    def chosen(self) -> Profile:
        """The row of the method chosen: the fastest that fits; of those about as fast, the most exact."""
        fastest = self.qualified[0]
        equal = [profile for profile in self.qualified if _number(profile.seconds) <= NOISE * _number(fastest.seconds)]
        return min(equal, key=lambda profile: (_number(profile.gradient_error), _number(profile.seconds)))

    @property
    def gradient(self) -> Gradient:
        """The gradient method that the plan chooses."""
        return self.chosen.gradient

    @property
    def qualified(self) -> tuple[Profile, ...]:
        """The rows that fit memory and tolerance, the fastest first."""
        return tuple(profile for profile in self.by_speed if self._qualifies(profile))

    @property
    def by_speed(self) -> tuple[Profile, ...]:
        """The rows that fit the memory, the fastest first, whatever their error."""
        return tuple(sorted((e for e in self.profiles if e.fits(self.memory)), key=lambda e: _number(e.seconds)))

    def auto(self, audit: int = 200) -> Auto:
        """The method chosen as a record that goes on being audited in training, and is left when it must be."""
        return Auto(tolerance=self.tolerance, audit=audit, memory=self.memory, method=self.gradient)

    def apply(self, model: Any) -> Any:
        """The model with the method chosen in every solve in it: in torch the same one, in JAX a copy.

        A solve whose method is `auto` keeps being audited.
        """
        from odenet._backend import registry

        return registry.backend(self.backend).with_gradient(model, self.gradient)

    def reason(self, profile: Profile) -> str:
        """Why a row was chosen or not, in a sentence."""
        best = self.chosen
        if profile is best:
            return f"{profile.label} is the fastest{self._conditions()}."
        if profile.trouble is not None:
            return f"{profile.label} did not come to its end: {profile.trouble}"
        if not profile.fits(self.memory):
            return f"{profile.label} needs {size(profile.peak_bytes)}, more than {size(self.memory)}."
        if self.zero and not exact(profile.gradient):
            return f"{profile.label} could not be measured: the exact gradient is zero or not finite."
        if not self._exact_enough(profile):
            return f"{profile.label} is {error(profile.gradient_error)} off, more than {error(self.tolerance)}."
        if _number(profile.seconds) <= NOISE * _number(best.seconds):
            return f"{profile.label} is about as fast as {best.label}, and not more exact."
        return f"{profile.label} takes {_number(profile.seconds) / _number(best.seconds):.3g} times as long."

    @property
    def verdict(self) -> str:
        """What was chosen, and what a user should know of it."""
        parts = [self.reason(self.chosen)]
        if self.zero:
            parts.append(
                "The exact gradient of the solves is zero or not finite on this batch, so that the error of no other "
                "method can be measured: plan again after some steps of training."
            )
        elif not any(self._qualifies(profile) for profile in self.profiles if not exact(profile.gradient)):
            if near := _nearest([e for e in self.profiles if e.trouble is None and not exact(e.gradient)]):
                rest = f"the nearest, {near.label}, is {error(near.gradient_error)} off."
                other = f"Of the others none fits both: {self.reason(near)}"
                parts.append(other if near.within(self.tolerance) else f"None but exact methods meet it: {rest}")
        return " ".join(parts)

    def rows(self) -> list[tuple[str, ...]]:
        """A row of cells for each method, under gradient method, time, peak, error and note."""
        return [
            (row.label, seconds(row.seconds), self._peak(row), error(row.gradient_error), self._note(row))
            for row in self.profiles
        ]

    def __str__(self) -> str:
        body = [("gradient method", "time", "peak", "error", ""), *self.rows()]
        lines = aligned(body)
        failed = [self.reason(profile) for profile in self.profiles if self._note(profile) == "failed"]
        conclusions = [line for text in (self.verdict, *failed) for line in textwrap.wrap(text, 80)]
        return "\n".join([*textwrap.wrap(self.title, 80), "", *lines, "", *conclusions])

    @property
    def title(self) -> str:
        """A line that says which model, device and memory the plan is for."""
        limit = "" if self.memory is None else f", memory {size(self.memory)}"
        where = f"{self.backend} {self.solver} N={self.steps} {self.dtype}"
        return f"{where}: gradient within {error(self.tolerance)} of {self.reference}{limit}"

    def _repr_html_(self) -> str:
        """The plan as HTML, which a notebook shows."""
        heads = ("gradient method", "time", "peak", "error", "")
        head = "".join(f"<th>{escape(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows())
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self.title)}</p>{table}<p>{escape(self.verdict)}</p>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite are left as they are."""
        rows = [_plain(row) | {"gradient": row.label, "reason": self.reason(row)} for row in self.profiles]
        return {**_plain(self), "chosen": self.gradient.label, "verdict": self.verdict, "profiles": rows}

    def _exact_enough(self, profile: Profile) -> bool:
        """An exact method is, whatever was measured: what it is off by is rounding, or the reference's own."""
        return exact(profile.gradient) or (not self.zero and profile.within(self.tolerance))

    def _qualifies(self, profile: Profile) -> bool:
        return profile.fits(self.memory) and self._exact_enough(profile)

    def _conditions(self) -> str:
        memory = "" if self.memory is None else f" that needs at most {size(self.memory)}"
        return f"{memory}{' and' if memory else ' that'} is within {error(self.tolerance)} of the exact gradient"

    def _peak(self, profile: Profile) -> str:
        over = profile.trouble is not None and profile.peak_bytes is not None
        return f">{size(profile.peak_bytes)}" if over else size(profile.peak_bytes)

    def _note(self, profile: Profile) -> str:
        if profile is self.chosen:
            return "chosen"
        if profile.trouble is not None:
            over = self.memory is not None and (profile.peak_bytes or 0) > self.memory
            return "memory" if over else "failed"
        if not profile.fits(self.memory):
            return "memory"
        return "slower" if self._exact_enough(profile) else "unknown" if self.zero else "error"


def completed(
    rows: Sequence[Profile],
    memory: int | None,
    again: Callable[[Sequence[Gradient]], Sequence[Profile]],
    make: Callable[[tuple[Profile, ...]], Plan],
) -> Plan:
    """The plan of rows that were measured within a limit of memory.

    Args:
        rows: what was measured.
        memory: the limit.
        again: measures methods without a limit, where nothing fits, since the error says how much would.
        make: the plan of the rows.

    Raises:
        InputError: no method fits.
    """
    try:
        return make(tuple(rows))
    except InputError:
        stopped = [row.gradient for row in rows if row.trouble]
        if memory is None or not stopped:
            raise
        if sum(exact(row.gradient) for row in rows) > 1:  # backprop takes most of them
            stopped = [gradient for gradient in stopped if not isinstance(gradient, Backprop)]
    known = {row.gradient: row for row in (*rows, *again(stopped))}
    return make(tuple(known.values()))


def _plain(record: Plan | Profile) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _nearest(rows: Sequence[Profile]) -> Profile | None:
    return min(rows, key=lambda profile: _number(profile.gradient_error), default=None)


def _number(value: float | None) -> float:
    """For comparisons: what is not there or not a number comes last."""
    return float("inf") if value is None or value != value else value
