"""Errors in the words of another library's call: what runs below a drop-in speaks in those of `odenet.solve`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from odenet._errors import OdenetError


class Wording:
    """The words of a drop-in.

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
