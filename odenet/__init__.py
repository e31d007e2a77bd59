"""Residual networks as ODE solvers: choose solver, gradient method and backend by name."""

from odenet._backend import Backend, BackendEntry, Evaluation, Gradients, Measurement
from odenet._controller import PIDController
from odenet._delegated import DelegatedSolver
from odenet._depth import Depth
from odenet._errors import (
    BackendUnavailableError,
    DepthError,
    DeviceUnavailableError,
    DtypeError,
    FileError,
    GradientError,
    GridError,
    InputError,
    NonFiniteError,
    OdenetError,
    SolveError,
    StateError,
    TableauError,
    UnknownNameError,
    UnsupportedError,
)
from odenet._event import Event
from odenet._gradients import (
    GRADIENTS,
    Backprop,
    Checkpoint,
    ContinuousAdjoint,
    Cost,
    DiscreteAdjoint,
    Gradient,
    Reversible,
    gradient,
)
from odenet._grid import Grid
from odenet._nets import NetSpec
from odenet._problem import Problem
from odenet._registry import available, backend, known
from odenet._reversible import AsynchronousLeapfrog, Coupled, ReversibleHeun, ReversibleSolver
from odenet._sample import Part, Sample
from odenet._solution import Result, Solution, Stats
from odenet._solve import solve, value_and_grad
from odenet._solver import solver
from odenet._solvers import SOLVERS, Solver
from odenet._span import Span
from odenet._tableau import Tableau
from odenet._weights import load_weights, save_weights
from odenet.doctor.checkup import check_gradients
from odenet.doctor.diagnosis import Diagnosis, Examination

__version__ = "0.1.0"

__all__ = [
    "GRADIENTS",
    "SOLVERS",
    "AsynchronousLeapfrog",
    "Backend",
    "BackendEntry",
    "BackendUnavailableError",
    "Backprop",
    "Checkpoint",
    "ContinuousAdjoint",
    "Cost",
    "Coupled",
    "DelegatedSolver",
    "Depth",
    "DepthError",
    "DeviceUnavailableError",
    "Diagnosis",
    "DiscreteAdjoint",
    "DtypeError",
    "Evaluation",
    "Event",
    "Examination",
    "FileError",
    "Gradient",
    "GradientError",
    "Gradients",
    "Grid",
    "GridError",
    "InputError",
    "Measurement",
    "NetSpec",
    "NonFiniteError",
    "OdenetError",
    "PIDController",
    "Part",
    "Problem",
    "Result",
    "Reversible",
    "ReversibleHeun",
    "ReversibleSolver",
    "Sample",
    "Solution",
    "SolveError",
    "Solver",
    "Span",
    "StateError",
    "Stats",
    "Tableau",
    "TableauError",
    "UnknownNameError",
    "UnsupportedError",
    "available",
    "backend",
    "check_gradients",
    "gradient",
    "known",
    "load_weights",
    "save_weights",
    "solve",
    "solver",
    "value_and_grad",
]
