"""64-bit numbers for the tests that ask for them, and JAX as it was afterwards."""

from __future__ import annotations

import pytest

import odenet


@pytest.fixture
def x64():
    """float64 arrays can be made."""
    with odenet.backend("jax").prepare("float64", "cpu"):
        yield
