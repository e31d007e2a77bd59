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
# the floors of the core, from the ground; a file imports from its own floor and those below
FLOORS = (
    ("_errors", "_tree", "_names", "_check", "_files", "_literals"),
    ("_solvers",),
    ("_gradients",),
    ("_problem",),
    ("_nets",),
    ("_test_problems",),
    ("_backend",),
    ("kit",),
    ("_report",),
    ("theory",),
    ("doctor",),
    ("_jobs",),
    ("__init__",),
    ("__main__",),
)
PLAIN_FLOORS = {name for floor in FLOORS[:8] for name in floor} - {"_test_problems"}
SHARED_BY_JOBS = {"cells", "data", "descent", "work_precision", "flags", "groups", "output"}
"""What jobs may import of `_jobs`; a job imports no other."""
ROOMS = ("_entry", "field", "steps", "gradients", "nets", "conversion", "drop_in", "verbs", "_backend", "__init__")
"""The floors of the native backends."""


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


def in_the_core(names):
    """What `names(path)` has of each file of the core that has any."""
    return {str(path.relative_to(CORE)): some for path in sorted(CORE.rglob("*.py")) if (some := names(path))}


def test_the_core_imports_no_framework_and_no_backend():
    def foreign(path):
        return {name for name in imported(path) if name in FRAMEWORKS or name.startswith("odenet_")}

    assert in_the_core(foreign) == {}


def test_the_plain_core_imports_nothing_heavy_when_it_is_loaded():
    def heavy(path):
        plain = path.relative_to(CORE).parts[0].removesuffix(".py") in PLAIN_FLOORS
        return imported(path, top_only=True) & HEAVY if plain else set()

    assert in_the_core(heavy) == {}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_backend_imports_its_own_framework_and_the_backend_that_it_stands_on(package):
    for path in folder(package).rglob("*.py"):
        backends = {name for name in imported(path) if name.startswith("odenet_")}
        assert (imported(path) & FRAMEWORKS | backends) - {package} <= ALLOWED[package], path


def test_every_backend_of_this_distribution_is_held_to_that():
    ours = {path.parent.name for path in folder("odenet_torch").parent.glob("odenet_*/__init__.py")}
    assert ours == set(ALLOWED)
    assert ours <= {entry.implementation.partition(".")[0] for entry in odenet.known().values()}


def test_no_folder_shadows_a_framework():
    assert not [path for package in ("odenet", "odenet_torch") for path in folder(package).parent.glob("torch")]
    assert not [path for package in ("odenet", "odenet_jax") for path in folder(package).parent.glob("jax")]
    assert not (folder("odenet_torch").parent / "__init__.py").exists()


def modules(package):
    """Every module of a package by its dotted name."""
    root = folder(package)
    return {
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }


def arrows(package):
    """From each module of a package to those of the same package that it imports: anywhere in the file, inside
    functions and under TYPE_CHECKING, too."""
    known = modules(package)
    graph = {}
    for name, path in known.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets |= {inner} if inner in known else {node.module} & known.keys()
        graph[name] = targets - {name}
    return graph


def circle(graph):
    """Modules that import each other in turn; nothing where there are none."""
    done, way = set(), []

    def visit(name):
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        way.append(name)
        found = next((found for other in sorted(graph[name]) if (found := visit(other))), [])
        way.pop()
        done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := visit(name))), [])


def test_a_circle_is_found_wherever_the_import_stands(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "one.py").write_text("def f():\n    from package import two\n")
    (tmp_path / "two.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.one\n")
    monkeypatch.setitem(globals(), "folder", lambda package: tmp_path)
    assert set(circle(arrows("package"))) == {"package.one", "package.two"}


@pytest.mark.parametrize("package", ["odenet", *ALLOWED])
def test_no_module_imports_itself_by_way_of_others(package):
    assert circle(arrows(package)) == []


def floor(name, floors):
    """Which floor a module stands on."""
    room = [*name.split("."), "__init__"][1]
    return next(i for i, names in enumerate(floors) if room in names)


def test_every_file_of_the_core_stands_on_a_floor_and_imports_nothing_above_it():
    upward = [
        f"{name} imports {other}"
        for name, others in arrows("odenet").items()
        for other in others
        if floor(other, FLOORS) > floor(name, FLOORS)
    ]
    assert upward == []


@pytest.mark.parametrize("package", ["odenet_torch", "odenet_jax"])
def test_the_rooms_of_a_backend_stand_on_each_other(package):
    rooms = [(room,) for room in ROOMS]
    upward = [
        f"{name} imports {other}"
        for name, others in arrows(package).items()
        for other in others
        if floor(other, rooms) > floor(name, rooms)
    ]
    assert upward == []


def test_jobs_import_no_other_job():
    for name, others in arrows("odenet").items():
        job = name.split(".")[2:3]
        if name.startswith("odenet._jobs.") and job != ["cli"]:
            strange = {
                other
                for other in others
                if other.startswith("odenet._jobs.") and other.split(".")[2] not in {*job, *SHARED_BY_JOBS}
            }
            assert not strange, f"{name} imports {strange}"


@pytest.mark.parametrize("package", ALLOWED)
def test_a_backend_imports_the_public_names_and_the_kit_alone_of_the_core(package):
    for name, path in modules(package).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "odenet":
                public = node.module == "odenet.kit" or not any(
                    part.startswith("_") for part in (*node.module.split("."), *(a.name for a in node.names))
                )
                assert public, f"{name} imports {node.module}"


def test_public_names_are_listed_and_there():
    assert len(set(odenet.__all__)) == len(odenet.__all__)
    public = {name for name, value in vars(odenet).items() if not name.startswith("_") and not _is_module(value)}
    assert public | set(odenet._JOBS) == set(odenet.__all__)
    assert all(hasattr(odenet, name) for name in odenet.__all__)


def _is_module(value):
    return type(value).__name__ == "module" or getattr(value, "__module__", "") == "__future__"


def test_long_files_say_why_they_are_long():
    packages = [CORE, *map(folder, ALLOWED)]
    files = [path for package in packages for path in package.rglob("*.py")]
    assert len(files) > 300
    long = [path for path in files if path.read_text().count("\n") > 250]
    silent = [path for path in long if "Over 250 lines" not in (ast.get_docstring(ast.parse(path.read_text())) or "")]
    assert not silent, f"over 250 lines without a reason in the docstring at the top: {silent}"
