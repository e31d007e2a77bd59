"""On what the numbers were measured."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from odenet._backend import registry as _registry

SEVERAL = " | "  # between the values of several machines


def machine(backends: Iterable[str]) -> dict[str, str]:
    """The machine and the versions that matter for times, as names and readable values."""
    properties = {
        "cpu": _cpu(),
        "cores": str(cores() or "unknown"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "memory": _memory(),
        "platform": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "odenet": metadata.version("odenet"),
        "numpy": metadata.version("numpy"),
    }
    for name in backends:
        entry = _registry.entry(name)
        properties[entry.framework] = _version(entry.framework) if entry.available else "not installed"
    return properties


def joined(machines: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Several machines as one description: what differs stands side by side."""
    values: dict[str, dict[str, None]] = {}
    for description in machines:
        for name, value in description.items():
            values.setdefault(name, {}).update(dict.fromkeys(value.split(SEVERAL)))
    return {name: SEVERAL.join(distinct) for name, distinct in values.items()}


def _version(framework: str) -> str:
    try:
        return metadata.version(framework)
    except metadata.PackageNotFoundError:  # the import name need not be the distribution's
        return "installed, version unknown"


def _cpu() -> str:
    try:
        line = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # no Linux
        line = None
    return line.group(1) if line else platform.processor() or platform.machine() or "unknown"


def cores() -> int | None:
    """How many cores this process may use, where the system tells."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):  # no such question on this system
        return "unknown"
