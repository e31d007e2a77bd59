"""Laws are checked by as many examples on a slow machine as on a fast one: no test depends on time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("odenet", deadline=None)
settings.load_profile("odenet")
