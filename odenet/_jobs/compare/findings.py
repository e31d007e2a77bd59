"""What a comparison says, as sentences made from its numbers: the verdict, and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from odenet._gradients.names import Backprop
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.compare.results import Comparison, Curve, MeasuredGradient, curves
from odenet._report.fit import STRAIGHT
from odenet._report.units import error, factor, seconds


@dataclass(frozen=True)
class Finding:
    """A sentence or two about one topic; each says what was measured and no more than that."""

    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}"


def findings(results: Comparison) -> list[Finding]:
    """What a reader should know, most important first."""
    series = curves(results.rows)
    if not series:
        return [Finding("Nothing measured", "there is no cell to read from yet."), *_not_run(results)]
    return [
        Finding("Reference", _reference(results.plan, series)),
        *(Finding("Exact", text) for text in _exact(series)),
        *_orders(series),
        *(Finding("Agreement", text) for text in _agreement(results.plan, results.rows)),
        *(Finding("Certificate", text) for text in _certificate(results.rows)),
        *_memory(series),
        *_time(series),
        Finding("Counts", _counts(results.rows)),
        *_not_run(results),
    ]


def _reference(plan: GridPlan, series: Sequence[Curve]) -> str:
    names = list(dict.fromkeys(plan.reference(solver) or "none" for solver in plan.solvers))
    text = (
        f"every gradient is compared with exact backprop in float64 by {' and '.join(names)}, on the same weights and "
        f"the same {plan.batch} images at the same depth."
    )
    if plan.dtype == "float64" and any(curve.gradient == "backprop" and curve.backend in names for curve in series):
        text += f" The backprop rows of {' and '.join(names)} compare the reference with itself: 0 means repeatable."
    return text


def _exact(series: Sequence[Curve]) -> list[str]:
    sentences = []
    for gradient in _names(series, "gradient"):
        mine = [curve for curve in series if curve.gradient == gradient]
        if all(curve.exact for curve in mine):
            worst = max(row.gradient_error or 0.0 for curve in mine for row in curve.rows.values())
            sentences.append(f"{gradient} is exact up to rounding: its largest error anywhere is {error(worst)}.")
    return sentences


def _orders(series: Sequence[Curve]) -> list[Finding]:
    paragraphs, rough = [], False
    for gradient in _names(series, "gradient"):
        parts = []
        for solver in _names(series, "solver"):
            mine = [c for c in series if (c.solver, c.gradient) == (solver, gradient) and c.fit is not None]
            if not mine:
                continue
            worst = max(mine, key=lambda c: c.last.gradient_error or 0.0)
            orders = {c.backend: str(c.fit) for c in mine}
            same = len(set(orders.values())) == 1
            fitted = next(iter(orders.values())) if same else ", ".join(f"{v} in {k}" for k, v in orders.items())
            rough |= "~" in fitted
            first, last = worst.first, worst.last
            parts.append(
                f"{solver} order {fitted} ({error(first.gradient_error)} at N={first.depth}, "
                f"{error(last.gradient_error)} at N={last.depth})"
            )
        if parts:
            paragraphs.append(Finding(gradient, f"gradient error: {'; '.join(parts)}."))
    if rough:
        paragraphs.append(
            Finding(
                "Orders marked ~",
                f"the errors do not lie on a straight line in the logarithms (R squared under {STRAIGHT}), so that the "
                "slope is not an order. Where the field has kinks, as with ReLU, a reconstructed state on the other "
                "side of a kink changes the gradient by a jump; --activation tanh shows the orders of the methods.",
            )
        )
    return paragraphs


def _agreement(plan: GridPlan, rows: Iterable[MeasuredGradient]) -> list[str]:
    references = {solver.label: plan.reference(solver) for solver in plan.solvers}
    others = [row for row in rows if row.ok and row.backend != references.get(row.solver)]
    if not others:
        return []
    outputs = max(row.forward_difference or 0.0 for row in others)
    names = " and ".join(dict.fromkeys(row.backend for row in others))
    text = f"outputs of {names} in {plan.dtype} differ from the reference backend's by at most {error(outputs)}"
    exact = [row.gradient_error or 0.0 for row in others if row.gradient == "backprop"]
    return [f"{text}, its backprop gradients by at most {error(max(exact))}." if exact else f"{text}."]


def _certificate(rows: Iterable[MeasuredGradient]) -> list[str]:
    ratios = [row.gradient_error / row.certificate for row in rows if row.ok and row.certificate and row.gradient_error]
    if not ratios:
        return []
    return [
        "known without a reference. It is not a bound, but measures the error of a method's reconstructed states, or "
        "of the gradient of its first step: here the gradient error was "
        f"{min(ratios):.3g} to {max(ratios):.3g} times the certificate."
    ]


def _memory(series: Sequence[Curve]) -> list[Finding]:
    paragraphs = []
    for backend in _names(series, "backend"):
        mine = [curve for curve in series if curve.backend == backend and curve.memory_growth is not None]
        parts = []
        for gradient in _names(mine, "gradient"):
            growths = [c.memory_growth or 0.0 for c in mine if c.gradient == gradient]
            ends = dict.fromkeys((factor(min(growths)), factor(max(growths))))
            parts.append(f"{gradient} {' to '.join(ends)}")
        if parts:
            first, last = mine[0].first, mine[0].last
            grown = f"from N={first.depth} to N={last.depth} ({factor(last.depth / first.depth)})"
            text = f"peak memory grows {grown} by: {'; '.join(parts)}. Counted by: {first.peak_bytes_method}."
            paragraphs.append(Finding(f"Memory, {backend}", text))
    if paragraphs:
        paragraphs.append(
            Finding(
                "Memory, all",
                "the peak contains the gradient itself, which is as large as the weights and so grows with N for every "
                "method (dotted in the figure); what lies above it is the method's own. Backends count in different "
                "ways, so compare within a backend only.",
            )
        )
    return paragraphs


def _time(series: Sequence[Curve]) -> list[Finding]:
    base = {(c.backend, c.solver, c.last.depth): c.last.step_seconds for c in series if c.gradient == "backprop"}
    paragraphs = []
    for backend in _names(series, "backend"):
        ratios: dict[str, list[float]] = {}
        for curve in series:
            step_seconds, exact = curve.last.step_seconds, base.get((backend, curve.solver, curve.last.depth))
            if curve.backend == backend and curve.gradient != "backprop" and step_seconds and exact:
                ratios.setdefault(curve.gradient, []).append(step_seconds / exact)
        parts = [f"{k} {' to '.join(dict.fromkeys((factor(min(v)), factor(max(v)))))}" for k, v in ratios.items()]
        if parts:
            text = f"loss and gradient at the largest depth take, against backprop: {'; '.join(parts)}."
            paragraphs.append(Finding(f"Time, {backend}", text))
    compiled = [row.compile_seconds for curve in series for row in curve.rows.values() if row.compile_seconds]
    text = "medians of few repeats on one machine: read factors, not per cents."
    if compiled:
        ends = " to ".join(dict.fromkeys((seconds(min(compiled)), seconds(max(compiled)))))
        text += f" Compilation took {ends} a cell and is in none of the times."
    return [*paragraphs, Finding("Time, all", text)]


def _counts(rows: Iterable[MeasuredGradient]) -> str:
    counted = [row for row in rows if row.ok and row.counts_match is not None]
    wrong = [row for row in counted if not row.counts_match]
    if not wrong:
        said = f"field evaluations and VJPs are those of the cost model in all {len(counted)} measured cells"
        looks = sum(row.f_backward != row.f_backward_expected for row in counted)
        return f"{said}, {looks} with one step more to tell whether the field has changed." if looks else f"{said}."
    names = ", ".join(dict.fromkeys(f"{row.backend} {row.solver} {row.gradient}" for row in wrong))
    return f"field evaluations or VJPs differ from the cost model in {len(wrong)} cells: {names}."


def _not_run(results: Comparison) -> list[Finding]:
    paragraphs = []
    reasons: dict[str, list[MeasuredGradient]] = {}
    for row in results.rows:
        if not row.ok:
            reasons.setdefault(row.status, []).append(row)
    for status, rows in reasons.items():
        first = rows[0]
        where = f"{first.backend} {first.solver} {first.gradient} N={first.depth}"
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        paragraphs.append(Finding("Not measured", f"{where}{more}: {status}"))
    if missing := len(results.left()):
        total = len(results.plan.cells())
        text = f"{missing} of {total} cells have not been run; the same command with --resume goes on."
        paragraphs.append(Finding("Interrupted", text))
    return paragraphs


def _names(series: Iterable[Curve], attribute: str) -> list[str]:
    return list(dict.fromkeys(getattr(curve, attribute) for curve in series))


TOLERANCE = 1e-2  # a gradient further off than this is not recommended
SAVING = 0.8  # of backprop's memory: what saves less is not worth another method
ALIKE = 1.25  # methods whose memory is within this factor of the least are chosen from by their error


def verdict(results: Comparison) -> str:
    """A sentence for each solver, from the rows of the first backend that has them at the largest depth."""
    sentences = []
    series = curves(results.rows)
    for solver in dict.fromkeys(curve.solver for curve in series):
        backend = next(curve.backend for curve in series if curve.solver == solver)
        sentences.append(_sentence([c for c in series if (c.solver, c.backend) == (solver, backend)]))
    return " ".join(sentences) or "No cell has been measured yet."


def _sentence(series: Sequence[Curve]) -> str:
    """About the gradient methods of one solver and backend."""
    depth = max(curve.last.depth for curve in series)
    there = [curve for curve in series if curve.last.depth == depth]
    where = f"{there[0].backend}, {there[0].solver}, N={depth}"
    base = next((curve.last for curve in there if curve.gradient == Backprop().label), None)
    if base is None:
        return f"{where}: backprop was not measured, so that nothing can be said of what others save."
    saving = [
        curve
        for curve in there
        if (curve.last.gradient_error or 0.0) <= TOLERANCE
        and (curve.last.peak_bytes or 0) <= SAVING * (base.peak_bytes or 0)
    ]
    if not saving or not base.peak_bytes or not base.step_seconds:
        return (
            f"{where}: take backprop; no other method saves a fifth of its memory with a gradient error of at most "
            f"{error(TOLERANCE)}."
        )
    least = min(curve.last.peak_bytes or 0 for curve in saving)
    alike = [curve for curve in saving if (curve.last.peak_bytes or 0) <= ALIKE * least]
    best = min(alike, key=lambda curve: curve.last.gradient_error or 0.0)
    memory, seconds = (best.last.peak_bytes or 0) / base.peak_bytes, (best.last.step_seconds or 0.0) / base.step_seconds
    return (
        f"{where}: take {best.gradient}; gradient error {error(best.last.gradient_error)}, memory "
        f"{factor(memory)} and time {factor(seconds)} of backprop's."
    )
