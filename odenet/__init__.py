"""Residual networks as ODE solvers: choose solver, gradient method and backend by name."""

import typing

from odenet import _names
from odenet._backend.entry import BackendEntry
from odenet._backend.interface import Backend, Evaluation, Gradients, Measurement
from odenet._backend.registry import available, backend, known
from odenet._backend.sample import Choices, Part, Profile, Profiles, Sample
from odenet._backend.solve import solve, unconvert, value_and_grad
from odenet._errors import (
    BackendUnavailableError,
    ConversionError,
    DepthError,
    DeviceUnavailableError,
    DtypeError,
    FileError,
    GradientError,
    GradientWarning,
    GridError,
    InputError,
    NonFiniteError,
    OdenetError,
    SolveError,
    StateError,
    TableauError,
    UnknownNameError,
    UnsupportedError,
    UselessGradientWarning,
    WriteError,
)
from odenet._gradients.names import (
    GRADIENTS,
    Auto,
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    Gradient,
    Reversible,
    gradient,
)
from odenet._gradients.record import Cost
from odenet._literals import BackendName, DeviceName, DtypeName, GradientName, SolverName
from odenet._nets.spec import NetSpec
from odenet._nets.weights import load_weights, save_weights
from odenet._problem.depth import Depth
from odenet._problem.grid import Grid
from odenet._problem.problem import Problem
from odenet._problem.solution import Result, Solution, Stats
from odenet._problem.span import Event, Span
from odenet._solvers.bdia import BDIA, TwoStepMidpoint
from odenet._solvers.controller import PIDController
from odenet._solvers.coupling import Hamiltonian, Leapfrog
from odenet._solvers.family import DelegatedSolver
from odenet._solvers.names import SOLVERS, solver
from odenet._solvers.reversible import AsynchronousLeapfrog, Coupled, ReversibleHeun, ReversibleSolver
from odenet._solvers.runge_kutta import Solver
from odenet._solvers.tableau import Tableau
from odenet._solvers.two_step import Momentum
from odenet.doctor.auditor import Audit, Auditor
from odenet.doctor.checkup import check_gradients
from odenet.doctor.diagnosis import Diagnosis
from odenet.doctor.examination import Examination
from odenet.doctor.plan import Plan
from odenet.doctor.planning import Audited, audit, plan

__version__ = "0.1.0"

__all__ = [
    "BDIA",
    "GRADIENTS",
    "SOLVERS",
    "AsynchronousLeapfrog",
    "Audit",
    "Audited",
    "Auditor",
    "Auto",
    "Backend",
    "BackendEntry",
    "BackendName",
    "BackendUnavailableError",
    "Backprop",
    "Checkpoint",
    "Choices",
    "ComparisonResults",
    "ContinuousAdjoint",
    "ConversionError",
    "Cost",
    "Coupled",
    "DelegatedSolver",
    "Depth",
    "DepthError",
    "DeviceName",
    "DeviceUnavailableError",
    "Diagnosis",
    "DiscreteAdjoint",
    "DtypeError",
    "DtypeName",
    "Evaluation",
    "Event",
    "Examination",
    "FileError",
    "Gradient",
    "GradientError",
    "GradientName",
    "GradientWarning",
    "Gradients",
    "Grid",
    "GridError",
    "Hamiltonian",
    "InputError",
    "Leapfrog",
    "Measurement",
    "Momentum",
    "NetSpec",
    "NonFiniteError",
    "OdenetError",
    "PIDController",
    "Part",
    "Plan",
    "Problem",
    "Profile",
    "Profiles",
    "Result",
    "Reversible",
    "ReversibleHeun",
    "ReversibleSolver",
    "Sample",
    "Solution",
    "SolveError",
    "Solver",
    "SolverName",
    "Span",
    "StateError",
    "Stats",
    "Tableau",
    "TableauError",
    "TrainingResults",
    "TwoStepMidpoint",
    "UnknownNameError",
    "UnsupportedError",
    "UselessGradientWarning",
    "WriteError",
    "audit",
    "available",
    "backend",
    "check_gradients",
    "compare",
    "gradient",
    "known",
    "load_weights",
    "plan",
    "read_results",
    "save_weights",
    "solve",
    "solver",
    "train",
    "unconvert",
    "value_and_grad",
]


if typing.TYPE_CHECKING:
    from odenet._jobs.compare.call import ComparisonResults, compare, read_results
    from odenet._jobs.train.call import TrainingResults, train

_JOBS = {
    "ComparisonResults": "_jobs.compare.call",
    "TrainingResults": "_jobs.train.call",
    "compare": "_jobs.compare.call",
    "read_results": "_jobs.compare.call",
    "train": "_jobs.train.call",
}
"""Names that are imported when they are asked for: a job needs NumPy and more."""

__getattr__, __dir__ = _names.lazily(__name__, __all__, _JOBS)
