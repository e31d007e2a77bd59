"""Run benchmarks by name and write each table to benchmarks/results/NAME.md and .json."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax

from odenet._files import write_text
from odenet._report.machine import machine

NAMES = (
    "adaptive_jax",
    "adaptive_torch",
    "audit_training",
    "certificate",
    "compile_jax",
    "conversion_time",
    "counted_statistics",
    "detest",
    "earlier_commit",
    "eager_jax",
    "equal_error",
    "events_and_rows",
    "gpu",
    "gradient_order",
    "memory",
    "overhead",
    "recovery",
    "rounded_states",
    "second_order",
    "small_steps",
    "step_time",
)
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> None:
    """Each benchmark is a module with `TITLE` and `rows()`; a row is a flat dict."""
    jax.config.update("jax_enable_x64", True)
    for name in names or NAMES:
        if name not in NAMES:
            sys.exit(f"no benchmark {name!r}; allowed: {', '.join(NAMES)}")
        module = importlib.import_module(f"benchmarks.{name}")
        rows = list(module.rows())
        if not rows:
            print(f"{name}: nothing to measure here; the table stays as it is")
            continue
        where = machine(("torch", "jax"))
        text = f"# {module.TITLE}\n\n{module.__doc__}\n\n{table(rows)}\n\n"
        text += "Machine: " + "; ".join(f"{key} {value}" for key, value in where.items()) + ".\n"
        write_text(RESULTS / f"{name}.md", text)
        write_text(RESULTS / f"{name}.json", json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
        print(text)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_text(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
