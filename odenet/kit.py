"""All that the author of a backend, a gradient method or a solver needs, beside the public names of `odenet`.

- a backend: `BackendEntry`, `Way`, `Backend` and the records that its verbs take and return; one step (`increment`,
  `trial`), where its stages read (`positions`), the controller's `Arithmetic`; trees; `conformance`, which tests it;
- a gradient method: `Gradient`, `Cost`, `Method`, `Way`, `register_gradient`;
- a solver: `Tableau`, `Solver` (or a family of your own: `AnySolver`), `register_solver`.

How each is done is in the documentation: add a backend, add a gradient method, add a solver.
"""

from odenet._backend.conformance import Check, conformance
from odenet._backend.entry import BackendEntry
from odenet._backend.imported import Imported
from odenet._backend.interface import Arrays, Backend, Evaluation, Gradients, Measurement
from odenet._backend.registry import ENTRY_CHECKS, require
from odenet._backend.sample import Part, Place, Sample, places, seconds
from odenet._backend.trainer import OPTIMIZER, VELOCITY, WEIGHT, Trainer, TrainingStep, checked_state, learning
from odenet._check import array_of_numbers, called, instance, real, several, takes, whole, within, yes_or_no
from odenet._errors import Wording, shown
from odenet._gradients import few_numbers, switches
from odenet._gradients.certified import (
    ALL_OF,
    BUCKETS,
    CHANGED,
    DOUBTFUL,
    DRIFT,
    DRIFTED,
    FAR,
    FURTHER,
    ITERATIONS_BESIDE,
    KINKS,
    SHARE,
    SMALL,
    STATES_BESIDE,
    WHOLE,
    Alarm,
    Certified,
    alarm,
    channel_axes,
    floor,
    lasting,
    least_change,
    quiet,
    scattered,
    signs,
)
from odenet._gradients.local_error import CostateError, CostateStep, LocalError, local_error, sum_of_powers
from odenet._gradients.names import gradient, register_gradient
from odenet._gradients.record import Cost, Gradient, Method, Way
from odenet._gradients.revolve import schedule
from odenet._names import lazily
from odenet._nets.spec import BACKWARD_FAULTS, GROUPS, NORM_EPSILON, NORM_MOMENTUM, NetSpec
from odenet._nets.stages import Unit, units
from odenet._problem.depth import Depth, Kind, blend, check_alike, kind_of_blocks
from odenet._problem.grid import Grid
from odenet._problem.problem import Compile, Problem, compiling, problem, require_one_grid
from odenet._problem.solution import Result, Solution, Stats
from odenet._problem.span import Event, Span, flag, number
from odenet._solvers.controller import Arithmetic, Landing, Past, PIDController, landing, resumed
from odenet._solvers.family import AnySolver, StagedSolver
from odenet._solvers.interpolant import hermite, interpolant
from odenet._solvers.names import made_reversible, register_solver, solver, staged
from odenet._solvers.reversible import Coupled, ReversibleSolver, bits_in_byte
from odenet._solvers.runge_kutta import Solver
from odenet._solvers.step import (
    Leaves,
    Stage,
    Trial,
    Weigh,
    add,
    combine,
    increment,
    positions,
    slopes,
    subtract,
    trial,
    weigh,
)
from odenet._solvers.tableau import Tableau
from odenet._tree import CHILDREN as TREE_CHILDREN
from odenet._tree import RULES as TREE_RULES
from odenet._tree import Rebuild, require_finite_tree
from odenet._tree import flatten as tree_flatten
from odenet._tree import leaves as tree_leaves
from odenet._tree import map as tree_map
from odenet._tree import paths as tree_paths
from odenet._tree import same_shape as tree_same_shape

__all__ = [
    "ALL_OF",
    "BACKWARD_FAULTS",
    "BUCKETS",
    "CHANGED",
    "DOUBTFUL",
    "DRIFT",
    "DRIFTED",
    "ENTRY_CHECKS",
    "FAR",
    "FURTHER",
    "GROUPS",
    "ITERATIONS_BESIDE",
    "KINKS",
    "NORM_EPSILON",
    "NORM_MOMENTUM",
    "OPTIMIZER",
    "SHARE",
    "SMALL",
    "STATES_BESIDE",
    "TREE_CHILDREN",
    "TREE_RULES",
    "VELOCITY",
    "WEIGHT",
    "WHOLE",
    "Alarm",
    "AnySolver",
    "Arithmetic",
    "Arrays",
    "Backend",
    "BackendEntry",
    "Certified",
    "Check",
    "Compile",
    "Cost",
    "CostateError",
    "CostateStep",
    "Coupled",
    "Depth",
    "Evaluation",
    "Event",
    "Gradient",
    "Gradients",
    "Grid",
    "Imported",
    "Kind",
    "Landing",
    "Leaves",
    "LocalError",
    "Measurement",
    "Method",
    "NetSpec",
    "PIDController",
    "Part",
    "Past",
    "Place",
    "Problem",
    "Rebuild",
    "Result",
    "ReversibleSolver",
    "Sample",
    "Solution",
    "Solver",
    "Span",
    "Stage",
    "StagedSolver",
    "Stats",
    "Tableau",
    "Trainer",
    "TrainingStep",
    "Trial",
    "Unit",
    "Way",
    "Weigh",
    "Wording",
    "add",
    "alarm",
    "array_of_numbers",
    "bits_in_byte",
    "blend",
    "called",
    "channel_axes",
    "check_alike",
    "checked_state",
    "combine",
    "compiling",
    "conformance",
    "few_numbers",
    "flag",
    "floor",
    "gradient",
    "hermite",
    "increment",
    "instance",
    "interpolant",
    "kind_of_blocks",
    "landing",
    "lasting",
    "lazily",
    "learning",
    "least_change",
    "local_error",
    "made_reversible",
    "number",
    "places",
    "positions",
    "problem",
    "quiet",
    "real",
    "register_gradient",
    "register_solver",
    "require",
    "require_finite_tree",
    "require_one_grid",
    "resumed",
    "scattered",
    "schedule",
    "seconds",
    "several",
    "shown",
    "signs",
    "slopes",
    "solver",
    "staged",
    "subtract",
    "sum_of_powers",
    "switches",
    "takes",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_paths",
    "tree_same_shape",
    "trial",
    "units",
    "weigh",
    "whole",
    "within",
    "yes_or_no",
]
