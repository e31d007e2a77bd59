"""What the rows of all jobs over cells can tell of themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

OK = "ok"
NOT_OFFERED = "not offered"
NOT_AVAILABLE = "not available"


class CellRow(ABC):
    """What one cell gave. Each job has its own, a frozen dataclass whose fields are the columns of results.csv."""

    status: str

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """The cell that the row belongs to, as names."""

    @property
    def ok(self) -> bool:
        """Whether the cell was measured."""
        return self.status == OK

    @property
    def skipped(self) -> bool:
        """Whether there was nothing to run."""
        return self.status.startswith((NOT_OFFERED, NOT_AVAILABLE))

    @property
    def failed(self) -> bool:
        """Whether the cell was tried and ended with an error (a solve that was given up is no error)."""
        return self.status != OK and not self.skipped
