"""What an editor and a type checker see: names as literals, whole signatures, and the type of the state."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import odenet
from odenet import _literals
from odenet._gradients.names import ALIASES, CHOICES, GRADIENTS
from odenet._solvers.names import ALL_SOLVERS
from odenet._solvers.runge_kutta import RUNGE_KUTTA

SCRIPT = """
import torch
import odenet
import odenet_torch
from typing_extensions import assert_type

def field(t: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(y @ w)

solution = odenet.solve(field, torch.ones(2, 3), torch.ones(3, 3), steps=8, solver="heun", gradient="discrete-adjoint")
assert_type(solution, odenet.Solution[torch.Tensor])
print(solution.y1.sum(), solution.stats.steps, solution.result)
loss, gradients, _ = odenet.value_and_grad(lambda s: s.y1.sum(), field, torch.ones(2, 3), torch.ones(3, 3), rtol=1e-3)
print(odenet.solve(lambda t, y: -y, torch.ones(2), steps=8).ys.shape)
print(loss, gradients.y0.shape)
stack = odenet_torch.ResidualStack([torch.nn.Linear(3, 3)], solver="euler", gradient="checkpoint", along="piecewise")
flow = odenet_torch.NeuralODE(torch.nn.Linear(3, 3), steps=4, solver="rk4", gradient="backprop")
spec = odenet.NetSpec("mlp", 4, 4)
net = odenet_torch.OdeNet(spec, spec.init(), solver="euler", gradient="reversible")
"""


def test_the_literals_are_the_names_of_the_records():
    solvers = get_args(_literals.SolverName)
    own = ALL_SOLVERS.own.values()
    aliases = [alias for record in own for alias in record.aliases]
    assert sorted(solvers) == sorted([*ALL_SOLVERS.own, *aliases, *(f"reversible:{name}" for name in RUNGE_KUTTA)])
    gradients = get_args(_literals.GradientName)
    variants = [f"{name}:{option}" for name, kind in GRADIENTS.own.items() for option in kind.notable]
    assert sorted(gradients) == sorted([*GRADIENTS.own, *ALIASES, *variants, *CHOICES])
    assert all(odenet.solver(name) for name in solvers)
    assert all(odenet.gradient(name) for name in gradients)
    ours = {
        name for name, entry in odenet.known().items() if entry.implementation.startswith(f"odenet_{name}._backend")
    }
    assert set(get_args(_literals.BackendName)) == ours


@pytest.mark.parametrize(
    "package", ["odenet", "odenet.theory", *(f"odenet_{name}" for name in odenet.known() if "-" not in name)]
)
def test_dir_is_the_public_names(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)


def test_value_and_grad_has_every_argument_of_solve():
    solve, both = (inspect.signature(f).parameters for f in (odenet.solve, odenet.value_and_grad))
    assert [*both] == ["loss", *solve]
    assert all(both[name].default == parameter.default for name, parameter in solve.items())


def test_a_strict_type_checker_says_nothing_of_a_user_s_script_and_refuses_a_misspelt_name(tmp_path):
    root = Path(odenet.__file__).parents[1]
    (tmp_path / "right.py").write_text(SCRIPT)
    wrong = {"heun": "huen", "euler": "eular", "rk4": "rk5", "checkpoint": "chekpoint", "reversible": "reversibel"}
    text = SCRIPT
    for right, misspelt in wrong.items():
        text = text.replace(f'"{right}"', f'"{misspelt}"')
    (tmp_path / "wrong.py").write_text(text)
    settings = {
        "typeCheckingMode": "strict",
        "extraPaths": [str(root), str(root / "backends")],
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--outputjson",
        "--pythonpath",
        sys.executable,
        "-p",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [(Path(each["file"]).name, each["message"]) for each in json.loads(done.stdout)["generalDiagnostics"]]
    assert [message for file, message in found if file == "right.py"] == []
    messages = [message for file, message in found if file == "wrong.py"]
    assert all(any(misspelt in message for message in messages) for misspelt in wrong.values())
