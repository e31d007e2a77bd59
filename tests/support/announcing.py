"""Backends that a test announces in the place of those installed, or beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint

import pytest

from odenet._backend import registry


def forget() -> None:
    """What the registry remembers of announced and loaded backends."""
    registry.forget()


@contextlib.contextmanager
def announced(monkeypatch: pytest.MonkeyPatch, places: Mapping[str, str], *, beside: bool = False) -> Iterator[None]:
    """Backends by name, each at its "module:name"; beside those that are installed, or instead of them."""
    points = [EntryPoint(name, place, registry.GROUP) for name, place in places.items()]
    real = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: [*(real(group=group) if beside else ()), *points])
    forget()
    yield
    forget()
