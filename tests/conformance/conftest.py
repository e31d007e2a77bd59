"""Every backend, from the registry. In this suite a missing framework is a failure, not a skip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cases import BACKENDS

import odenet


@pytest.fixture(params=[name if name == "torch" else pytest.param(name, marks=pytest.mark.slow) for name in BACKENDS])
def thorough(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each backend in turn, for tests of many programs: those that compile them wait for `make test-slow`."""
    with odenet.backend(request.param).prepare("float64", "cpu"):
        yield request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each backend in turn, with float64 arrays allowed."""
    loaded = odenet.backend(request.param)
    with loaded.prepare("float64", "cpu"):
        yield request.param
