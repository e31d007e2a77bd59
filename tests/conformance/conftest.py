"""Every backend, from the registry. In this suite a missing framework is a failure, not a skip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cases import BACKENDS

import odenet


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each backend in turn, with float64 arrays allowed."""
    loaded = odenet.backend(request.param)
    with loaded.prepare("float64", "cpu"):
        yield request.param
