"""Every exception that odenet raises on purpose.

    OdenetError
    ├── InputError (ValueError)              an argument cannot be used
    │   ├── UnknownNameError                 no solver, gradient, backend, problem ... of that name
    │   ├── GridError                        times and steps: t0, t1, steps, ts
    │   ├── DepthError                       weights along depth: kind, number of layers, refinement
    │   ├── StateError                       y0, or what the field returned for it
    │   ├── DtypeError                       a number type that would be changed in silence
    │   ├── ConversionError                  a model that cannot be converted, or a converted one used otherwise
    │   ├── NonFiniteError                   NaN or infinity in the input
    │   └── TableauError                     Runge-Kutta coefficients that fail their own checks
    ├── UnsupportedError (NotImplementedError)   a known combination that is not offered
    ├── GradientError (RuntimeError)         a gradient that could not be given truthfully
    ├── SolveError (RuntimeError)            an adaptive solve that could not go on
    ├── BackendUnavailableError (ImportError)    a known backend whose framework is not installed
    ├── DeviceUnavailableError (RuntimeError)    a device that the framework does not see
    └── FileError (OSError)                  a file that cannot be read, written or trusted
        └── WriteError                       one that cannot be written: no space, no permission, another run's

Each says what was given, what is allowed and what to do next. And what is said and not raised:

    GradientWarning (UserWarning)            a gradient that may be off by more than a tenth: once for each network
    └── UselessGradientWarning               or by more than a half, or NaN: in every backward pass

A `Wording` has errors speak in the words of another library's call, for drop-ins.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType


class OdenetError(Exception):
    """Base of all exceptions of this library.

    Args:
        given: what was given, as a sentence without a full stop.
        allowed: what would have been accepted.
        remedy: what to do next.
    """

    def __init__(self, given: str, allowed: str = "", remedy: str = "") -> None:
        self.given = given
        self.allowed = allowed
        self.remedy = remedy
        parts = [given + "."]
        if allowed:
            parts.append(f"Allowed: {allowed}.")
        if remedy:
            parts.append(f"What to do: {remedy}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[type[OdenetError], tuple[str, str, str]]:
        return type(self), (self.given, self.allowed, self.remedy)


class InputError(OdenetError, ValueError):
    """An argument cannot be used."""


class UnknownNameError(InputError):
    """No solver, gradient method, backend, problem ... has that name."""


class GridError(InputError):
    """Times or steps that make no grid."""


class DepthError(InputError):
    """Weights along depth that do not fit the steps, or each other."""


class StateError(InputError):
    """A state that cannot be solved for, or a field that does not return the state's own shape."""


class DtypeError(InputError):
    """A number type that would have to be changed in silence."""


class ConversionError(InputError):
    """A model that cannot be converted, or a converted model in a use that its gradient method does not allow."""


class NonFiniteError(InputError):
    """NaN or infinity where a finite number is needed."""


class TableauError(InputError):
    """Runge-Kutta coefficients that fail their own checks."""


class UnsupportedError(OdenetError, NotImplementedError):
    """A known combination that is not offered."""


class GradientError(OdenetError, RuntimeError):
    """A gradient that could not be given truthfully."""


class GradientWarning(UserWarning):
    """A gradient that may be off by more than a tenth, by its certificate; said once for each network and method.

    `warnings.simplefilter("error", odenet.GradientWarning)` makes it an error.

    Args:
        message: all of it, in words.
        certificate: the number that is said: see `Stats.certificate`, or the measured error of a gradient.
        gradient: the label of the gradient method.
        step: of the depth, where the number is from: 0 is the first, -1 the state at t0 after all steps back. None
            where it is of no one step.
        layer: the class of the layer that the step evaluates, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        certificate: float = math.nan,
        gradient: str = "",
        step: int | None = None,
        layer: str = "",
    ) -> None:
        super().__init__(message)
        self.certificate = certificate
        self.gradient = gradient
        self.step = step
        self.layer = layer


class UselessGradientWarning(GradientWarning):
    """A gradient that may be off by more than a half, or is NaN, by its certificate; said in every backward pass."""


class SolveError(OdenetError, RuntimeError):
    """An adaptive solve that could not go on: see `odenet.Result`."""


class BackendUnavailableError(OdenetError, ImportError):
    """A known backend whose framework is not installed."""


class DeviceUnavailableError(OdenetError, RuntimeError):
    """A device that the framework does not see."""


class FileError(OdenetError, OSError):
    """A file that cannot be read, written or trusted."""

    def __str__(self) -> str:  # OSError formats two arguments as an errno
        return str(self.args[0])


class WriteError(FileError):
    """A file or a folder that cannot be written: no space, no permission, in use by another run, or gone."""


def shown(value: object, most: int = 80) -> str:
    """`repr(value)` for a message: cut to `most` characters, and a sentence where Python writes none.

    A whole number of thousands of digits has no `repr`, and somebody else's class may have one that raises.
    """
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__} that cannot be written out"
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


def in_words(error: BaseException) -> str:
    """An error as text: odenet's own say all themselves, others are told by their class."""
    return str(error) if isinstance(error, OdenetError) else f"{type(error).__name__}: {error}"


class Wording:
    """The words of a drop-in: what runs below it speaks in those of `odenet.solve`.

    Args:
        phrases: what messages say, and what they are to say; whole remedies first, of which later phrases are parts.
        packages: those whose calls may lie between the drop-in and what raises; beyond any other, an error is that of a
            function of the user's.
    """

    def __init__(self, phrases: Sequence[tuple[str, str]], packages: Iterable[str]) -> None:
        self.phrases, self.packages = tuple(phrases), frozenset(packages)

    def translated(self, text: str) -> str:
        """A part of a message, with the names of the call's arguments."""
        for ours, theirs in self.phrases:
            text = text.replace(ours, theirs)
        return text

    @contextlib.contextmanager
    def speaking(self, entry: str) -> Iterator[None]:
        """Inside, errors of this library name the entry that was called, and its arguments.

        What a function of the user's raises stays as it is, that of another solve within it too.
        """
        try:
            yield
        except OdenetError as error:
            if not self._is_the_users(error.__traceback__):
                # one entry may call another: the user's call is the outermost
                given = error.given.removeprefix(f"{getattr(error, 'entry', '')}: ")
                vars(error)["entry"] = entry
                error.given = f"{entry}: {self.translated(given)}"
                error.allowed, error.remedy = self.translated(error.allowed), self.translated(error.remedy)
                error.args = type(error)(error.given, error.allowed, error.remedy).args
            raise

    def _is_the_users(self, traceback: TracebackType | None) -> bool:
        """Whether an error came from beyond the calls of these packages."""
        while traceback is not None:
            if traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in self.packages:
                return True
            traceback = traceback.tb_next
        return False
