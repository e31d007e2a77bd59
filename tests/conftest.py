"""Laws are checked by as many examples on a slow machine as on a fast one: no test depends on time."""

from __future__ import annotations

import gc

import pytest
from fake_backend import fake  # noqa: F401
from hypothesis import settings

settings.register_profile("odenet", deadline=None)
settings.load_profile("odenet")


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect() -> None:
    """What the frameworks and earlier tests hold is not looked through again: jobs collect before each measurement."""
    gc.collect()
    gc.freeze()
