"""Who may import whom, read from the source: no framework in the core, no backend in another."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

import odenet

CORE = Path(odenet.__file__).parent
FRAMEWORKS = {"torch", "torchdiffeq", "jax", "jaxlib", "equinox", "diffrax", "optax", "flax", "lineax", "optimistix"}
ALLOWED = {  # frameworks, and other backends
    "odenet_torch": {"torch"},
    "odenet_jax": {"jax", "jaxlib", "equinox"},
    "odenet_torchdiffeq": {"torch", "torchdiffeq", "odenet_torch"},
    "odenet_diffrax": {"jax", "equinox", "diffrax", "optimistix", "odenet_jax"},
    "odenet_scipy": set(),
}
HEAVY = {"numpy", "scipy", "matplotlib", "sklearn", "safetensors", "click", "rich"}
JOBS = {"_cli.py", "_flags.py", "_tables.py", "_problems.py", "_reference.py", "_convergence.py"}  # of the command line
PLAIN = [path for path in sorted(CORE.glob("_*.py")) if path.name not in JOBS | {"_convergence_figure.py"}]


def folder(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def imported(path, top_only=False):
    """Top-level packages that a file imports, at any depth; those under TYPE_CHECKING are not imported."""
    found, stack = set(), list(ast.parse(path.read_text()).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += node.orelse
        elif not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)):
            stack += ast.iter_child_nodes(node)
    return found


def test_the_walk_sees_imports_at_any_depth(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import never\n"
        "def f():\n    try:\n        from c.d import e\n    except ImportError:\n        import g\n"
    )
    assert imported(path) == {"a", "typing", "c", "g"}
    assert imported(path, top_only=True) == {"a", "typing"}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_no_framework_and_no_backend(path):
    backends = {name for name in imported(path) if name.startswith("odenet_")}
    assert imported(path) & FRAMEWORKS == backends == set()


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_the_plain_core_imports_nothing_heavy_when_it_is_loaded(path):
    assert imported(path, top_only=True) & HEAVY == set()


@pytest.mark.parametrize("package", ALLOWED)
def test_a_backend_imports_its_own_framework_and_the_backend_that_it_stands_on(package):
    for path in folder(package).rglob("*.py"):
        backends = {name for name in imported(path) if name.startswith("odenet_")}
        assert (imported(path) & FRAMEWORKS | backends) - {package} <= ALLOWED[package], path


def test_every_backend_of_this_distribution_is_held_to_that():
    assert {entry.implementation.partition(".")[0] for entry in odenet.known().values()} == set(ALLOWED)


def test_no_folder_shadows_a_framework():
    assert not [path for package in ("odenet", "odenet_torch") for path in folder(package).parent.glob("torch")]
    assert not [path for package in ("odenet", "odenet_jax") for path in folder(package).parent.glob("jax")]
    assert not (folder("odenet_torch").parent / "__init__.py").exists()


def test_public_names_are_listed_and_there():
    assert len(set(odenet.__all__)) == len(odenet.__all__)
    public = {name for name, value in vars(odenet).items() if not name.startswith("_") and not _is_module(value)}
    assert public == set(odenet.__all__)


def _is_module(value):
    return type(value).__name__ == "module" or getattr(value, "__module__", "") == "__future__"
