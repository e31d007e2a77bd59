"""Known, available, loaded: three things that are kept apart, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from functools import cache

import pytest
from quick import quick

import odenet
from odenet import BackendEntry, BackendUnavailableError, InputError, UnknownNameError, UnsupportedError
from odenet._backend import registry as _registry
from odenet._gradients.record import Way
from odenet._solvers.family import FAMILIES
from odenet._solvers.names import ALL_SOLVERS

FRAMEWORKS = {"torch": "torch", "jax": "jax"}
PEERS = {"torchdiffeq": "torch", "diffrax": "jax", "scipy": None}  # and what they stand on
KNOWN = {*FRAMEWORKS, *PEERS}
FOREIGN = {"numpy-toy"}  # of tests/foreign

HIDE = """
import sys

class Without:
    '''A finder that finds what the other does, but for some packages: as if they were not installed.'''
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

def hide(*names):
    sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
"""


def fresh(code, path=()):
    """What a fresh Python process prints, read as JSON; warnings are errors there, too."""
    lines = ["import json, sys", f"sys.path[:0] = {[str(folder) for folder in path]!r}", HIDE, textwrap.dedent(code)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


LOADED = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


@cache
def before_any():
    """What a process has loaded that has imported nothing of ours."""
    return set(fresh(LOADED))


def test_importing_odenet_loads_the_standard_library_only():
    assert set(fresh(f"import odenet\n{LOADED}")) - before_any() - set(sys.stdlib_module_names) == {"odenet"}


@pytest.mark.parametrize("framework", sorted(KNOWN))
def test_importing_a_backend_loads_no_framework(framework):
    loaded = set(fresh(f"import odenet_{framework}\nassert odenet_{framework}.backend.name\n{LOADED}"))
    assert loaded - before_any() - set(sys.stdlib_module_names) == {
        "odenet",
        f"odenet_{framework}",
        *([f"odenet_{PEERS[framework]}"] if PEERS.get(framework) else []),
    }


def test_looking_at_the_registry_loads_no_framework():
    loaded = fresh(f"import odenet\nassert odenet.known() and odenet.available()\n{LOADED}")
    assert not {"numpy", "torch", "jax", "equinox"} & set(loaded)


def test_loading_one_backend_leaves_the_other_framework_alone():
    """Nor the other way round, as the backend of somebody else sees."""
    assert "torch" not in fresh(f"import odenet\nodenet.backend('jax')\n{LOADED}")


@pytest.mark.parametrize(("here", "hidden"), quick([("torch", "jax"), ("jax", "torch")], [("torch", "jax")]))
def test_with_one_framework_everything_of_it_works_and_the_other_is_known(here, hidden):
    found = fresh(
        f"""
        hide({hidden!r})
        import numpy as np, odenet
        from odenet._jobs.list import backends
        spec = odenet.NetSpec(block="mlp", depth=2, width=4)
        backend = odenet.backend({here!r})
        kinds = dict(solver=odenet.solver("heun"), gradient=odenet.gradient("discrete-adjoint"))
        model = backend.build(spec, spec.init(), **kinds)
        evaluated = backend.evaluate(model, np.ones((3, 1, 8, 8)), np.zeros(3))
        y1 = odenet.solve(lambda t, y: -y, 1.0, steps=4, solver="rk4", backend={here!r}).y1
        loss, gradients, _ = odenet.value_and_grad(
            lambda s: s.y1.sum(), lambda t, y, w: w * y, np.ones(2, "float32"), np.ones(2, "float32"), steps=2,
            backend={here!r},
        )
        errors = []
        for call in (
            lambda: odenet.backend({hidden!r}),
            lambda: odenet.solve(lambda t, y: -y, 1.0, steps=4, backend={hidden!r}),
        ):
            try:
                call()
            except odenet.BackendUnavailableError as error:
                errors.append(str(error))
        print(json.dumps(dict(
            known=list(odenet.known()), available=list(odenet.available()), loss=evaluated.loss, y1=float(y1),
            gradient=float(gradients.weights[0]), errors=errors, listed=[row["available"] for row in backends()],
            loaded=[name for name in ("torch", "jax") if name in sys.modules],
        )))
        """
    )
    assert set(found["known"]) == KNOWN | FOREIGN
    assert set(found["available"]) == {here, "scipy", *FOREIGN, *(peer for peer, base in PEERS.items() if base == here)}
    assert found["loaded"] == [here]
    assert sum(found["listed"]) == len(found["available"])
    assert found["y1"] == pytest.approx(0.3679, abs=1e-4)
    assert found["loss"] > 0
    assert found["gradient"] == pytest.approx(1.5)
    assert len(found["errors"]) == 2
    for error in found["errors"]:
        assert f"{hidden} is known but not available" in error
        assert f"pip install 'odenet[{hidden}]'" in error


def test_with_no_framework_at_all_the_core_still_works():
    found = fresh(
        """
        hide("torch", "jax")
        import odenet
        try:
            odenet.solve(lambda t, y: -y, 1.0, steps=4)
        except odenet.InputError as error:
            print(json.dumps([list(odenet.available()), list(odenet.known()), len(odenet.SOLVERS), str(error)]))
        """
    )
    assert (found[0], set(found[1])) == ([*sorted(FOREIGN), "scipy"], KNOWN | FOREIGN)
    assert found[2] == len(odenet.SOLVERS)
    assert "jax, torch, diffrax" in found[3]


def test_a_framework_that_is_installed_but_broken_is_an_error_that_says_so():
    """JAX without equinox: found, but the backend cannot be imported."""
    found = fresh(
        """
        hide("equinox")
        import odenet
        try:
            odenet.backend("jax")
        except odenet.BackendUnavailableError as error:
            print(json.dumps(str(error)))
        """
    )
    assert "backend jax is installed but odenet_jax._backend:JaxBackend cannot be loaded" in found
    assert "No module named 'equinox'" in found
    assert "pip install 'odenet[jax]'" in found


@pytest.fixture
def site(tmp_path):
    """A folder with three installed distributions: a backend of a few lines, one whose module fails, and one that
    announces something else."""

    def install(name, point, code):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[odenet.backends]\n{point} = {name}:backend\n")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))

    install("ruined", "ruined", "raise RuntimeError('half installed')")
    install("confused", "confused", "backend = 'no entry'")
    install(
        "odenet_lists",
        "lists",
        """
        from odenet import Backend, BackendEntry, Backprop, Solution, Stats
        from odenet._gradients.record import Way
        from odenet._solvers.step import add, increment

        class Number(float):
            '''This framework's array.'''
            shape = ()

        class Lists(Backend):
            '''Solves for Python numbers.'''
            def solve(self, problem):
                grid, tableau, y = problem.grid, problem.solver.tableau, (problem.y0,)
                for n in range(grid.steps):
                    stage = lambda i, at: (problem.field(grid.time(n, tableau.c[i]), at[0]),)
                    y = add(y, increment(tableau, stage, y, grid.h))
                import numpy as np
                stats = Stats("lists", problem.solver.name, "backprop", grid.steps, 0)
                return Solution(np.array([grid.t1]), np.array([y[0]]), stats)
            def value_and_grad(self, *a, **k): raise NotImplementedError
            to_numpy = prepare = devices = value_and_grad

        backend = BackendEntry(
            "lists", "json", "nothing", "odenet_lists:Lists", ("odenet_lists",),
            methods={Backprop: Way("json:loads")}, families=("runge-kutta",),
        )
        """,
    )
    return tmp_path


def test_a_backend_of_somebody_else_is_found_and_solves_and_broken_ones_stop_nobody(site):
    found = fresh(
        """
        import odenet
        from odenet_lists import Number
        third = odenet.solve(lambda t, y: -y, Number(1), steps=8, solver="rk4")  # found by the type of y0
        named = odenet.solve(lambda t, y: -y, 1.0, steps=8, solver="rk4", backend="lists")
        ours = odenet.solve(lambda t, y: -y, 1.0, steps=8, solver="rk4", backend="torch")
        errors = {}
        for name, gradient in (("ruined", "backprop"), ("confused", "backprop"), ("lists", "adjoint")):
            try:
                odenet.solve(lambda t, y: -y, 1.0, steps=8, backend=name, gradient=gradient)
            except odenet.OdenetError as error:
                errors[name] = [type(error).__name__, str(error)]
        print(json.dumps([
            sorted(odenet.known()), sorted(odenet.available()), float(third.y1), float(named.y1), float(ours.y1),
            errors, sorted(sys.modules),
        ]))
        """,
        path=[site],
    )
    known, available, third, named, ours, errors, loaded = found
    assert "torch" in loaded
    assert "jax" not in loaded
    assert known == available == sorted({"lists", *FOREIGN, *KNOWN})
    assert third == pytest.approx(named) == pytest.approx(ours, rel=1e-6)
    assert errors["ruined"][0] == "BackendUnavailableError"
    assert "ruined:backend could not be imported (half installed)" in errors["ruined"][1]
    assert errors["confused"][0] == "InputError"
    assert "an odenet.BackendEntry" in errors["confused"][1]
    assert errors["lists"][0] == "UnsupportedError"
    assert "gradients backprop" in errors["lists"][1]


def test_an_unknown_backend_is_answered_with_a_near_one():
    with pytest.raises(UnknownNameError, match=r"backend called 'toch'.*take torch"):
        odenet.backend("toch")


def test_every_name_of_an_entry_is_one_the_core_knows():
    for entry in odenet.known().values():
        assert set(entry.gradients) <= set(odenet.GRADIENTS)
        assert {*entry.runs(), *entry.runs(adaptive=True), *entry.solvers, *entry.adaptive} <= set(ALL_SOLVERS)
        assert {*entry.families, *entry.adaptive_families} <= set(FAMILIES)
        assert entry.install.startswith("pip install")


def test_a_pair_that_is_not_offered_lists_what_is():
    methods = {odenet.Backprop: Way("json:loads")}
    entry = BackendEntry("some", "json", "", "json:JSONDecoder", methods=methods, solvers=("euler",))
    entry.require(odenet.solver("euler"), odenet.gradient("backprop"))
    for solver, gradient in (("heun", "backprop"), ("euler", "discrete-adjoint")):
        with pytest.raises(UnsupportedError, match="solvers euler; gradients backprop"):
            entry.require(odenet.solver(solver), odenet.gradient(gradient))


def test_arrays_of_nobody_and_of_two_are_refused():
    import jax.numpy as jnp
    import numpy as np
    import torch

    with pytest.raises(InputError, match=r"numpy\.ndarray.*belong to none.*backend='torch'"):
        _registry.entry_for([np.ones(2)])
    with pytest.raises(InputError, match=r"belong to (torch, jax|jax, torch)"):
        _registry.entry_for([(jnp.ones(2), torch.ones(2))])
    assert _registry.entry_for([{"a": (torch.nn.Parameter(torch.ones(1)), 1.0)}]).name == "torch"
    assert _registry.entry_for([1.0, jnp.ones(1)]).name == "jax"


def test_a_missing_framework_is_an_import_error():
    entry = BackendEntry("some", "no_such_framework", "pip install some", "nothing:Nothing")
    assert not entry.available
    with pytest.raises(ImportError, match="pip install some") as error:
        entry.load()
    assert isinstance(error.value, BackendUnavailableError)
