"""`odenet list` shows what the registries hold."""

from __future__ import annotations

import json
from math import comb

import announcing
import pytest
from click.testing import CliRunner

from odenet import GRADIENTS, Backend, BackendEntry, solver
from odenet._gradients.names import gradient
from odenet._jobs.list import SECTIONS, command
from odenet._solvers.names import ALL_SOLVERS
from odenet._solvers.reversible import REVERSIBLE_SOLVERS
from odenet._test_problems.named import PROBLEMS


class Devices(Backend):
    """A backend that can be asked for its devices, and for nothing else."""

    def devices(self):
        return "cpu", "toy:0"


Devices.__abstractmethods__ = frozenset()  # pyright: ignore[reportAttributeAccessIssue]


class Broken(Devices):
    """A backend whose installation is broken."""

    def __init__(self):
        raise OSError("libtoy.so: cannot open shared object file [x]")


def _entry(name, framework, kind):
    return BackendEntry(name, framework, f"pip install {name}", f"{__name__}:{kind}", ("nothing",))


WORKS = _entry("works", "numpy", "Devices")
BROKEN = _entry("breaks", "numpy", "Broken")
MISSING = _entry("lacks", "no_such_framework", "Devices")


@pytest.fixture
def announced(monkeypatch):
    """Three backends of ours instead of those installed, and a package that cannot be imported."""
    places = {"works": "WORKS", "breaks": "BROKEN", "lacks": "MISSING"}
    places = {name: f"{__name__}:{place}" for name, place in places.items()} | {"ruined": "no_such_package:backend"}
    with announcing.announced(monkeypatch, places):
        yield


def listed(*arguments):
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(what):
    return json.loads(listed(what, "--json"))[what]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("solvers", tuple(ALL_SOLVERS)),
        ("gradients", GRADIENTS),
        ("problems", PROBLEMS),
    ],
)
def test_every_record_is_listed_as_text_and_as_json(what, names):
    text = listed(what)
    assert [row["name"] for row in rows(what)] == list(names)
    assert all(f"\n{name} " in text for name in names)


@pytest.mark.usefixtures("announced")
def test_without_an_argument_all_four_are_listed():
    text = listed()
    assert all(title in text for title in ("Backends", "Solvers", "Gradient methods", "Problems"))
    assert set(json.loads(listed("--json"))) == set(SECTIONS) == {"backends", "solvers", "gradients", "problems"}


def test_a_solver_is_described():
    found = {row["name"]: row for row in rows("solvers")}
    dopri5 = found["dopri5"]
    assert (dopri5["order"], dopri5["stages"], dopri5["tableau_stages"]) == (5, 6, 7)
    assert (dopri5["fsal"], dopri5["embedded_order"]) == (True, 4)
    assert found["rk4"]["embedded_order"] is None
    assert found["heun"]["aliases"] == ["heunnet"]
    assert not found["rk4"]["reversible"]


def test_a_reversible_solver_is_described_without_a_tableau():
    found = {row["name"]: row for row in rows("solvers")}
    for name, record in REVERSIBLE_SOLVERS.items():
        row = found[name]
        assert (row["order"], row["stages"], row["reversible"]) == (record.order, record.stages, True)
        assert row["tableau_stages"] is row["fsal"] is row["embedded_order"] is None
        assert row["source"]
    assert found["alf"]["aliases"] == ["asynchronous-leapfrog", "mali"]


def test_the_options_listed_make_the_default_gradient():
    """Spelling each listed option at its listed default gives the method without options."""
    for row in rows("gradients"):
        given = [f"{name}={value}" for name, value in row["options"].items() if value is not None]
        assert gradient(":".join([row["name"], *given])) == gradient(row["name"])


LETTERS = {  # of the variants: what their options are, and the letters that are not the default's
    "segments=K": [("segments=3", {"K": 3}), ("segments=5", {"K": 5})],
    "states=K": [("states=1", {"K": 1}), ("states=2", {"K": 2}), ("states=4", {"K": 4})],
    "bits=B": [("bits=8", {"B": 8}), ("bits=16:tolerance=1e-3", {"B": 16})],
    "predictor=extrapolate": [
        ("predictor=extrapolate", {"k": 2}),
        ("predictor=extrapolate:order=1", {"k": 1}),
        ("predictor=extrapolate:order=4", {"k": 4}),
    ],
    "anchors=K": [("anchors=2", {"K": 2}), ("anchors=50:iterations=3", {"K": 50, "m": 3})],
    "tolerance=T": [("tolerance=1e-3", {"L": 32}), ("tolerance=1e-3:limit=5:iterations=2", {"L": 5, "m": 2})],
    "interpolate=yes": [
        ("interpolate=yes", {"i": 1}),
        ("interpolate=yes:solver=heun", {"i": 0, "r": 2}),
        ("interpolate=yes:solver=euler", {"i": 0, "r": 1}),
    ],
}


def check_formulas(formulas, cost, letters):
    for name, formula in formulas.items():
        whole, _, rounded = formula.removesuffix(" rounded").partition(", ")
        text = whole.replace("s'", "r").replace(" ", "*").replace("*+*", "+")
        assert eval(text, {}, letters) == getattr(cost, name), (formula, name)
        if name == "states":
            assert eval(rounded or "0", {}, letters) == cost.rounded


def letters_of(found, steps):
    base = {"N": steps, "s": found.stages, "M": steps, "r": found.stages, "m": 1, "d": 1, "max": max}
    return base | {"e": int(found.name in ("reversible-heun", "alf"))}


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize("name", ["euler", "rk4", "dopri5"])
def test_the_costs_listed_are_those_of_the_cost_model(name, steps):
    """Each formula, evaluated with numbers for its letters, is what `cost` says; so with each option."""
    found, seen = solver(name), set()
    for row in rows("gradients"):
        if not gradient(row["name"]).offered(found):
            continue
        letters = letters_of(found, steps)
        check_formulas(row["cost"], gradient(row["name"]).cost(found, steps), letters)
        for label, formulas in row["variants"].items():
            for options, more in LETTERS[label]:
                if name != "rk4" and options == "interpolate=yes":
                    more = {"i": int(name == "dopri5")}
                given = letters | more
                if "K" in given:
                    r = next(r for r in range(steps) if comb(given["K"] + r, r) >= steps)
                    given["A"] = r * steps - comb(given["K"] + r, r - 1)
                check_formulas(formulas, gradient(f"{row['name']}:{options}").cost(found, steps), given)
            seen.add(label)
    assert seen == set(LETTERS)


@pytest.mark.parametrize("name", ["reversible-heun", "alf", "reversible", "reversible:dopri5"])
def test_the_costs_listed_of_the_reversible_method_are_those_of_the_cost_model(name):
    (row,) = (row for row in rows("gradients") if row["name"] == "reversible")
    check_formulas(row["cost"], gradient("reversible").cost(solver(name), 7), letters_of(solver(name), 7))


def test_every_letter_of_the_costs_is_explained():
    text = " ".join(listed("gradients").split())
    for words in (
        *(
            "N steps",
            "s field evaluations",
            "e before the first",
            "m iterations",
            "k the order",
            "at most L evaluations",
        ),
        *("K < N states, A = r N - C(K+r, r-1)", "M steps", "s' evaluations", "i is 1 where", "copies of the state"),
    ):
        assert words in text


def test_options_are_listed_with_their_defaults_and_what_they_cost():
    text = listed("gradients")
    for words in (
        "segments=K (none)",
        "memory=none",
        "solver=forward's",
        "predictor=extrapolate (reverse)",
        "limit=32",
    ):
        assert words in text


@pytest.mark.usefixtures("announced")
def test_known_available_and_broken_backends_are_told_apart():
    found = {row["name"]: row for row in rows("backends")}
    assert list(found) == ["breaks", "lacks", "works", "ruined"]
    assert found["works"]["available"]
    assert found["works"]["devices"] == ["cpu", "toy:0"]
    assert found["works"]["version"]
    assert not found["lacks"]["available"]
    assert found["lacks"]["install"] == "pip install lacks"
    assert "libtoy.so" in found["breaks"]["trouble"]
    assert "no_such_package" in found["ruined"]["trouble"]


@pytest.mark.usefixtures("announced")
def test_the_table_of_backends_says_what_to_install_and_what_is_broken():
    text = " ".join(listed("backends").split())
    assert "known, not available: pip install lacks" in text
    assert "cannot be loaded: BackendUnavailableError: backend breaks is installed but" in text
    assert "libtoy.so: cannot open shared object file [x]" in text
    assert "cpu, toy:0" in text


def test_an_unknown_section_is_a_usage_error():
    result = CliRunner().invoke(command, ["sovlers"])
    assert result.exit_code == 2
    assert "solvers" in result.stderr


def test_help_shows_examples():
    text = listed("--help")
    assert "Examples:\n" in text
    assert "  odenet list solvers\n" in text


def test_output_into_a_pipe_is_not_broken_at_80_columns():
    lines = listed("solvers").splitlines()
    assert any("Heun 1900; Sander, Ablin, Peyre 2022, section 4" in line for line in lines)
