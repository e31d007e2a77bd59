"""Laws are checked by as many examples on a slow machine as on a fast one: no test depends on time."""

from __future__ import annotations

import gc
import os
import platform
from importlib import metadata

import pytest
from chance import set_chance
from fake_backend import fake  # noqa: F401
from hypothesis import settings
from waiting import let_wait, waiting


def xla_flags() -> str:
    """What makes XLA compile in the least time: most of the suite's time on JAX is compilation.

    Without the emitters of fused loops that pass through MLIR it takes two thirds of the time. A product and a sum are
    then contracted into one rounding here and not there: without FMA, up to AVX, equal formulas have equal bits.
    Programs this small are not worth being split for several threads of the compiler: undivided they take 5 % less.
    Only versions for which the flags were tried are given them: XLA ends the process at a flag that it does not know.
    """
    try:
        tried = metadata.version("jaxlib").startswith("0.10.") and platform.machine() == "x86_64"
    except metadata.PackageNotFoundError:
        tried = False
    flags = "--xla_backend_optimization_level=0"
    split = "--xla_cpu_parallel_codegen_split_count=1"
    return f"{flags} --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX {split}" if tried else flags


os.environ["ODENET_CACHE"] = "off"  # tests know nothing of earlier ones: those of the cache say where it is
os.environ.setdefault("XLA_FLAGS", xla_flags())  # read when XLA is first asked for something; processes inherit it
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a stack for each operation of a program: 5 % of a test

settings.register_profile("odenet", deadline=None, derandomize=True)
settings.load_profile("odenet")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--chance N`: see `set_chance`."""
    parser.addoption("--chance", type=int, default=0, help="other numbers where tests leave them to chance")


@pytest.hookimpl(tryfirst=True)  # before fixtures draw some
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is left to chance does not depend on what ran before."""
    set_chance(item.nodeid, item.config.getoption("--chance"))


@pytest.hookimpl(tryfirst=True)  # before the tests that `-m` leaves out are taken out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest tests that others stand for wait for the slow suite."""
    if not any("::" in argument for argument in config.args):  # which asks for single tests
        let_wait(items, waiting())


# tracing makes many objects that live on: at Python's thresholds looking them through is up to a tenth of the time
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect() -> None:
    """What the frameworks and earlier tests hold is not looked through again: jobs collect before each measurement."""
    gc.collect()
    gc.freeze()


os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and what is printed into a pipe would be as narrow
