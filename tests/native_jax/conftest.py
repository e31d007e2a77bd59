"""64-bit numbers for the tests that ask for them, and JAX as it was afterwards."""

from __future__ import annotations

import os

import pytest

import odenet

# most of these tests' time is compilation, which is shorter so; read by XLA when it is first asked for something
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def x64():
    """float64 arrays can be made."""
    with odenet.backend("jax").prepare("float64", "cpu"):
        yield
