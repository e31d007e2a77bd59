"""What goes wrong, in the words of jax.experimental.ode's call: the steps below speak in those of `odenet.solve`."""

from __future__ import annotations

from contextlib import ContextDecorator

from odenet import Result
from odenet.kit import Wording

_ROOT = __name__.partition(".")[0]
_OURS = {"odenet", _ROOT, "jax", "equinox", "contextlib", "functools"}
_PHRASES = (
    # whole remedies first, of which later phrases are parts
    (Result.MAX_STEPS.happened, "mxstep steps were tried between one time and the next"),
    (
        Result.MAX_STEPS.remedy,
        "give a larger mxstep, or larger rtol and atol; a func that needs ever smaller steps is stiff, and wants "
        "odenet.solve with backend='diffrax' and solver='kvaerno5'",
    ),
    ("name jumps with jump_t", "give odenet.solve them as jump_t"),
    ("take more steps, or look", "give hmax, or look"),
    ("; PIDController(throw=False) returns what there is", ""),
    ("equal steps; or a field that reads its own row alone", "a func that reads its own row alone"),
    ("give steps=N; or solve", "take odenet.solve with steps=N; or solve"),
    ("give it in weights; or", "give it in args; or"),
    ("arrays in weights,", "arrays in args,"),
    ("does not run from t0", "does not run from t[0]"),
    ("to t1=", "to t[-1]="),
    ("t0=", "t[0]="),
    ("t1=", "t[-1]="),
    ("ts=", "t="),
    ("t0 and t1", "t[0] and t[-1]"),
    ("y0 (leaf)", "y0"),
    ("the field", "func"),
    ("a field", "a func"),
    ("an adaptive solve", "a solve"),
    ("weight is", "an array of args is"),
)

_WORDING = Wording(_PHRASES, _OURS)


def speaking(entry: str) -> ContextDecorator:
    """In what it decorates, errors name the entry that was called, and its arguments (see `Wording.speaking`)."""
    return _WORDING.speaking(entry)
