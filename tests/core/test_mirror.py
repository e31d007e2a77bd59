"""The two native backends are written alike: same files, same public names, same nouns and verbs inside."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

from odenet import Backend

ONE, OTHER = "odenet_torch", "odenet_jax"
CONVERSION = {
    "between_layers",
    "branches",
    "call_modes",
    "calls",
    "converted",
    "layer",
    "layer_run",
    "layer_end",
    "lent_objects",
    "linked",
    "measured",
    "planned",
    "recomputed",
    "repeatable",
    "rerun",
    "residual",
    "rounded",
    "runs",
    "segment",
    "sums",
}
DROP_IN = {
    "adaptive",
    "adjoint",
    "compiled",
    "error",
    "events",
    "exact_gradient",
    "fixed",
    "flow",
    "methods",
    "options",
    "recalled_function",
    "recording",
    "separate",
    "step_back",
    "way_back",
}
ALONE = {
    # modules that change as they run, torch's random state; models that somebody wrote with them; torchdiffeq's calls
    ONE: {
        "field/called_modules.py",
        "field/arguments.py",
        "field/memory.py",
        "field/knowledge.py",
        "field/random_state.py",
        # what a function writes, reads and leaves by the side: pure functions have none of it
        "field/differentiating.py",
        "field/raised.py",
        "field/looked.py",
        "gradients/hookless.py",
        # a plan and audits inside of a backward pass, which pure functions have outside: odenet.plan, odenet.audit
        "field/live_bytes.py",
        "gradients/audited.py",
        "gradients/profiles.py",
        "gradients/repeated_pass.py",
        "nets/watched.py",
        "field/half_precision.py",  # sums of half-precision gradients
        "gradients/sums.py",
        "gradients/stages.py",  # nodes of autograd
        "field/escapes.py",  # of nodes of autograd
        "field/late_writes.py",
        "field/not_dense.py",  # JAX has no arrays but dense ones
        "field/dynamo.py",  # which traces Python code: what JAX compiles it is given
        "field/saved_tensors.py",
        "field/places.py",
        "field/reachable_objects.py",
        "field/block_contents.py",
        "field/settled.py",
        "field/passing_values.py",
        "conversion/settled_layers.py",
        "field/outer_data.py",  # what code outside of the field changes: JAX has it in its trace
        "field/shared_hooks.py",  # hooks on all modules, of which JAX has none
        "field/stored_values.py",
        "steps/compiled.py",  # JAX compiles a solve whole
        "steps/graph.py",
        "steps/shortcuts.py",
        "steps/seeded.py",
        "steps/strides.py",
        "steps/stride_patterns.py",
        "steps/inside.py",
        "gradients/strides.py",
        "field/wiring.py",
        "steps/direct.py",
        "field/side_results.py",
        "field/surroundings.py",
        "field/storages.py",  # sparse tensors, whose numbers lie in several
        "field/written_on.py",
        "field/witness.py",  # whether what runs again is what it was, which a trace cannot cease to be
        "gradients/known_ends.py",
        "steps/events.py",  # in JAX in steps/dense.py
        "steps/batched_condition.py",  # there vmap
        "steps/watched_steps.py",  # there the loop is one program, which looks as it steps
        "steps/moving_grid.py",  # times of equal steps that need a gradient, which are refused there
        "steps/adaptive.py",  # a Python loop that keeps what is wanted as it goes
        "steps/per_sample.py",  # in JAX that is vmap
        "steps/rows.py",
        "steps/gate.py",
        "steps/scalars.py",  # there a number is of the type of the array beside it
        "steps/independence.py",
        "steps/resolution.py",  # float64 beside a float32 state
        *(f"conversion/{name}.py" for name in CONVERSION),
        *(f"drop_in/{name}.py" for name in DROP_IN),
    },
    # JAX's pytrees; a certificate that a backward pass cannot leave behind; convolutions that XLA is slow at; the while
    # loop of an adaptive solve, its derivative (a linear map whose transpose is our own), its buffers, and the backward
    # loop of its continuous adjoint; closures as trees, and meshes of devices
    OTHER: {
        "field/host_calls.py",  # what a trace alone cannot tell: Python code calls itself as it runs
        # conversion of models that are trees: layers of a list hand on to the last one, which computes all of them
        "conversion/arguments.py",
        "conversion/containers.py",
        "conversion/example.py",
        "conversion/flax_layers.py",
        "conversion/increment.py",
        "conversion/pending.py",
        "conversion/run.py",
        "field/block_state.py",  # eqx.nn.State, which is handed in and out
        "field/flax_modules.py",
        "field/miscompiled.py",  # torch has no version that is known to be wrong
        "field/handed_on.py",  # of programs, which flax's transformations return all variables from
        "field/collectives.py",  # named axes of vmap
        "verbs/mapped_rows.py",  # certificates under vmap
        "field/closure.py",
        "field/fingerprint.py",  # programs that outlive a call
        "field/live.py",  # of programs that are compared
        "field/programs.py",
        "field/repeatable.py",  # a function is traced once
        "field/rules.py",
        "field/trees.py",
        "field/varying.py",
        "gradients/adaptive.py",
        "gradients/adaptive_costate.py",
        "gradients/adaptive_vjp.py",
        "gradients/adjoint_again.py",
        "gradients/flow.py",
        "gradients/linear_map.py",
        "gradients/plain_steps.py",
        "gradients/runtime_errors.py",  # errors that a compiled program finds when it runs
        "gradients/unreached.py",  # the derivative of what stands for no result
        "nets/convolution.py",
        "steps/adaptive_loop.py",
        "field/module_writes.py",  # in torch field/written_on.py, which asks version counters
        "steps/clock.py",  # times of float32: torch has them as Python floats
        "steps/record.py",
        "verbs/certificate.py",
        "verbs/on_disk.py",  # compiled programs
    },
}
NAMES = {
    ONE: {"odeint_adjoint", "odeint_dense", "odeint_event"},
    OTHER: {"certified_value_and_grad"},
}
IDIOM = {  # what only one framework needs: a tape's leaves here, pure functions of all arrays there
    "_backend.py": ({"TorchBackend"}, {"JaxBackend"}),
    # looked for when a block runs here, in its program there
    "field/linearity.py": (
        {"HookWatch", "Pullback", "declares", "hooks_a_module", "keeping_gradients", "pullback", "uneven"},
        {"Part"},
    ),
    "field/jumps.py": ({"Watch", "divides"}, {"subprograms"}),
    # for the witnesses, which are here alone; kinks are found in a program there
    "field/switches.py": ({"either_side", "elsewhere", "seen_to_jump"}, {"guards"}),
    "field/kinks.py": ({"by_name", "perhaps", "within"}, set()),
    # an adaptive solve: a Python loop over accepted steps here, a compiled while loop and buffers there
    "steps/accepted.py": ({"AcceptedField", "stops_of"}, {"AcceptedRun", "SolveTimes", "line"}),
    "steps/dense.py": (
        {"differentiable", "times_of_any_shape"},
        {"EventBracket", "Watch", "slope_between", "without_rate"},
    ),
    "steps/times.py": (
        {
            "ForwardPass",
            "WithoutRate",
            "at_event",
            "crossing",
            "flat",
            "from_start",
            "moved",
            "moves",
            "slope",
            "to_outputs",
            "zero",
        },
        {"Times", "moving", "of_times"},
    ),
    "steps/tolerance.py": ({"allowances", "normed", "over", "within"}, {"tolerance"}),
    "steps/size_control.py": (
        {"AcceptedStep", "AdaptiveLoop", "CompiledTrials", "StepCallbacks", "beside", "lead", "moments"},
        {"LoopState", "finite", "first_size", "judge", "propose", "renewed", "repeat", "start"},
    ),
    "steps/weighted_sum.py": ({"Buffered", "SlopeRows", "plus"}, {"choose", "gated"}),
    "gradients/accepted_steps.py": (
        {"joined", "once", "plain", "solve"},
        {"AcceptedStepVJP", "Cotangents", "RecomputedStates", "BackwardPass", "piece"},
    ),
    "gradients/certificate.py": (
        {"anywhere", "ErrorReport", "StepErrors", "compared_whole", "jumping", "norms", "joined", "together"},
        {"by_kinks", "on_top", "root", "share", "tied", "worse"},
    ),  # objects that change; compiled programs that need it
    "gradients/continuous_adjoint.py": ({"AdaptiveCostate", "Doubled", "Quadrature"}, set()),
    "gradients/discrete_adjoint.py": ({"LoneStep", "alone", "counted_together", "predicted"}, {"AdaptiveReversal"}),
    # blocks that are scanned are of one kind, and the drop-in for JAX has adaptive steps alone
    "gradients/compared_steps.py": ({"difference", "error", "kinds"}, set()),
    "gradients/way_back.py": ({"least", "root_mean_square"}, {"Compared"}),
    "verbs/batch.py": (set(), {"like"}),
    "drop_in/odeint.py": (
        {"odeint_adjoint", "odeint_dense", "odeint_event"},
        set(),
    ),  # torchdiffeq's calls, and JAX's one
    "nets/modules.py": (set(), {"Unseen"}),  # what an alarm knows a network of equinox by
    "conversion/attached.py": (
        {"Attached", "base_of", "plainly"},
        {"Place", "all_detached", "is_attached", "name_of", "plain_call", "plain_class", "plain_copy"},
    ),
    "conversion/selection.py": ({"selection"}, {"runs", "single_layers"}),
    "verbs/examine.py": ({"coarsest", "unchanged"}, {"Probed", "changed", "mapped", "named"}),
    "field/field.py": (
        {"BlockField", "FunctionField", "ends", "leaves", "moved", "outside", "unique"},
        {"Slot", "Weights", "field", "widened"},
    ),
    "steps/fixed.py": ({"stacked"}, {"LoopObserver", "kept_rows", "loop_in_place", "read", "write"}),
    "verbs/measure.py": (set(), {"finished", "peak_bytes"}),  # in torch in field/live_bytes.py
    "field/replay.py": (
        {"autocasts", "hooks_its_state"},
        {"BlockContext", "after", "block_context", "call"},
    ),  # torch modules hold it themselves
    "gradients/solve.py": ({"recorded"}, {"solve_with_context"}),
    "field/state.py": (
        {"as_tensor", "meta_state", "require_times"},
        # JAX sorts the keys of dicts, and stacks layers
        {
            "array_of",
            "as_array",
            "flattened",
            "promoted",
            "repeated",
            "require_arrays",
            "require_like",
            "require_no_reference",
            "stacked",
        },
    ),
    # running statistics are buffers here, arguments and results there
    "nets/blocks.py": (set(), {"Ordinary", "by_running"}),
    "gradients/adjoint.py": (
        {
            "in_forward_mode",
            "mark",
            "own",
            "pulled",
            "read",
            "refuse_batches",
            "refuse_classes",
            "refuse_second_derivatives",
            "refuse_transforms",
            "require_finite",
            "require_known",
            "require_recording",
            "standing",
            "unhooked",
        },
        {"OutputCotangents", "collect", "descend", "differentiated", "none_unread", "once"},
    ),
    "drop_in/words.py": ({"named", "reason", "stopped", "stopped_back"}, set()),
    "gradients/rounded_states.py": (
        {"Chain", "HalfPrecisionChain", "restarts"},
        {"Chains"},
    ),  # a chain writes in place, or is carried
    "gradients/checkpoint.py": ({"Segment"}, {"Keeps", "Turns", "resolved", "table"}),  # a schedule as arrays
}

APART = {"steps/times.py", "steps/size_control.py", "gradients/accepted_steps.py"}
"""Files of one concept whose nouns differ altogether: see above about the loops."""


def folder(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def files(package):
    root = folder(package)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in (".py", ".typed")}


SHARED = sorted(name for name in files(ONE) & files(OTHER) if name.endswith(".py"))


def outline(package, name):
    """The public functions and classes of a file, and the methods of each class."""
    found = {}
    for node in ast.parse((folder(package) / name).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            inner = node.body if isinstance(node, ast.ClassDef) else ()
            found[node.name] = {
                method.name
                for method in inner
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
            }
    return found


def test_the_files_are_the_same():
    assert files(ONE) - ALONE[ONE] == files(OTHER) - ALONE[OTHER]


def test_the_public_names_are_the_same_and_are_there():
    one, other = importlib.import_module(ONE), importlib.import_module(OTHER)
    assert set(one.__all__) - NAMES[ONE] == set(other.__all__) - NAMES[OTHER]
    for package in (one, other):
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing


@pytest.mark.parametrize("name", ["ResidualStack", "NeuralODE", "OdeNet"])
def test_modules_take_the_same_arguments_with_the_same_defaults(name):
    one, other = (
        inspect.signature(getattr(importlib.import_module(package), name).__init__).parameters
        for package in (ONE, OTHER)
    )
    # JAX places arrays by context, and compiles by jit around a call
    different = {"OdeNet": {"device"}, "NeuralODE": {"compile"}, "ResidualStack": {"compile"}}.get(name, set())
    assert one.keys() - different == other.keys() - different
    for key in one.keys() & other.keys():
        assert one[key].kind == other[key].kind
        if key != "dtype":
            assert one[key].default == other[key].default, key


@pytest.mark.parametrize("name", SHARED)
def test_the_public_nouns_and_verbs_of_a_file_are_the_same_but_for_each_framework_s_idiom(name):
    one, other = outline(ONE, name).keys(), outline(OTHER, name).keys()
    assert (one - other, other - one) == IDIOM.get(name, (set(), set()))
    assert one & other or name.endswith(("__init__.py", "_backend.py", "_entry.py")) or name in APART


@pytest.mark.parametrize("package", [ONE, OTHER])
def test_the_verbs_are_those_of_the_seam_and_no_others(package):
    (backend,) = [noun for noun in outline(package, "_backend.py") if noun.endswith("Backend")]
    defaults = {"compiled", "keep_programs", "unconvert", "require_place", "framework", "dtypes"}  # of the interface
    verbs = {name for name in vars(Backend) if not name.startswith("_")} - defaults
    assert verbs <= outline(package, "_backend.py")[backend] <= verbs | defaults


def test_both_announce_the_same_capabilities():
    one, other = (importlib.import_module(package).backend for package in (ONE, OTHER))
    for what in ("solvers", "adaptive", "families", "adaptive_families", "gradients", "networks"):
        assert getattr(one, what) == getattr(other, what)
    assert [way.adaptive is None for way in one.methods.values()] == [
        way.adaptive is None for way in other.methods.values()
    ]
    for entry in (one, other):
        assert entry.implementation.partition(":")[0] == f"odenet_{entry.name}._backend"
