"""Peers behind the same interface. In CI a missing one is a failure; elsewhere its tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import odenet

PEERS = ("torchdiffeq", "diffrax", "scipy")


@pytest.fixture(autouse=True)
def wide(request: pytest.FixtureRequest) -> Iterator[None]:
    """float64 in JAX; a test that names a peer needs it."""
    name = request.node.callspec.params.get("peer") if hasattr(request.node, "callspec") else None
    for each in (name,) if name else PEERS:
        if not odenet.known()[each].available and not os.environ.get("CI"):
            pytest.skip(odenet.known()[each].install)
    with odenet.backend("jax").prepare("float64", "cpu"):
        yield
