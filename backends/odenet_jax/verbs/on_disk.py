"""Compiled programs on disk, and what compiling them took: for jobs, which ask for it (see `Backend.keep_programs`)."""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from odenet import FileError

_HIT = "/jax/compilation_cache/cache_hits"
_kept: list[Path] = []
_here = threading.local()


def keep_programs(folder: Path) -> None:
    """Keep compiled programs in a folder. One that JAX was told of otherwise (JAX_COMPILATION_CACHE_DIR) stays that.

    JAX tells programs apart by themselves, its version and XLA's flags; not by the processor, whose instructions they
    are made of: each kind of processor has a folder in this one.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    place = folder / f"jax-{_processor()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{place} cannot be made ({error.strerror or error})", "a folder you may write to") from error
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0
    )  # small ones take longer to compile than to read
    _kept.append(place)


def compiled(lowered: Any) -> tuple[Any, float | None]:
    """The program, and the seconds of compiling it; those that it took then where it was compiled by an earlier job.

    Args:
        lowered: what `jax.jit(...).lower(...)` returns.

    Returns:
        The program; and the seconds, or None where it comes from a folder that does not say.
    """
    _listen()
    _here.hits, start = 0, time.perf_counter()
    program = lowered.compile()
    taken: float | None = time.perf_counter() - start
    if not _kept:
        return program, None if _here.hits else taken
    record = _kept[-1] / f"{hashlib.sha256(lowered.as_text().encode()).hexdigest()}.seconds"
    try:
        if _here.hits:
            taken = float(record.read_text())
        else:
            record.write_text(f"{taken:.6g}")
    except (OSError, ValueError):  # a folder that is being emptied, or is full
        taken = None if _here.hits else taken
    return program, taken


@cache
def _listen() -> None:
    jax.monitoring.register_event_listener(_count)


def _count(event: str, **_: Any) -> None:
    if event == _HIT:
        _here.hits = getattr(_here, "hits", 0) + 1  # JAX compiles in the thread that asks for it


def _processor() -> str:
    """A short name of the kind of processor: what instructions it has."""
    parts = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        parts += sorted({line for line in lines if line.lower().startswith(("model name", "flags", "features"))})
    except OSError:  # there is none outside of Linux
        pass
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
