"""The doctor's judgement, on gradients made up for it: no framework."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import odenet
from odenet import (
    Backprop,
    Checkpoint,
    DiscreteAdjoint,
    GradientError,
    InputError,
    Part,
    Reversible,
    Sample,
    Stats,
    gradient,
    solver,
)
from odenet._gradients.names import menu
from odenet.doctor.checkup import diagnose
from odenet.doctor.comparison import smoothness

STEPS, WIDTH = 16, 5
RNG = np.random.default_rng(0)
TRUE = {"stem": RNG.standard_normal(WIDTH), "blocks": RNG.standard_normal((STEPS, WIDTH))}
OFF = {name: RNG.standard_normal(value.shape) for name, value in TRUE.items()}
SIZE = np.sqrt(sum((v**2).sum() for v in TRUE.values()) / sum((v**2).sum() for v in OFF.values()))
SMOOTH = np.cos(np.arange(STEPS) / STEPS)[:, None] * RNG.standard_normal(WIDTH) + 1.0

# relative error and certificate by label
CONTRACTIVE = {
    "backprop": (0.0, None),
    "checkpoint": (0.0, 0.0),
    "discrete-adjoint": (4e-3, 5e-3),
    "discrete-adjoint:correct=no": (3e-2, 5e-3),
    "discrete-adjoint:iterations=2": (2e-4, 3e-4),
    "discrete-adjoint:predictor=extrapolate": (6e-3, 8e-3),
    "continuous-adjoint": (5e-2, 7e-2),
}
EXPANSIVE = {
    **CONTRACTIVE,
    "discrete-adjoint": (0.9, 0.3),
    "discrete-adjoint:iterations=2": (1.0, 0.4),
    "discrete-adjoint:predictor=extrapolate": (1.1, 0.9),
}


def part(name="", kind="piecewise", solved_by="euler", certificate=None, **choices):
    layers = tuple({"w": ("blocks", n)} for n in range(STEPS if kind != "shared" else 1))
    return Part(name, solver(solved_by), STEPS, kind, layers, certificate, **choices)


def seen(errors, *, weights=SMOOTH, parts=None, dtype="float64"):
    """A model whose gradients have these errors; what has no error here fails."""

    def see(method, reversible):
        error, certificate = errors[method.label]
        if isinstance(error, Exception):
            raise error
        made = parts or (part(solved_by="reversible:euler" if reversible else "euler"),)
        made = tuple(dataclasses.replace(each, certificate=certificate) for each in made)
        gradients = {name: value + error * SIZE * OFF[name] for name, value in TRUE.items()}
        return Sample(1.0, gradients, {"stem": np.ones(WIDTH), "blocks": weights}, made, dtype)

    return see


def diagnosis(errors, *, tolerance=1e-2, methods=None, offers=lambda solver, method: True, **choices):
    methods = map(gradient, methods or errors)
    return diagnose(seen(errors, **choices), methods, tolerance=tolerance, backend="toy", offers=offers)


@pytest.mark.parametrize(
    ("tolerance", "label"),
    [
        (
            1e-1,
            "discrete-adjoint:predictor=extrapolate",
        ),  # f least often; not the continuous adjoint, whose certificate looks at two steps
        (5e-3, "discrete-adjoint"),
        (1e-3, "discrete-adjoint:iterations=2"),
        (1e-4, "checkpoint"),  # backprop keeps the stages, too
    ],
)
def test_the_cheapest_that_meets_the_tolerance_is_recommended(tolerance, label):
    found = diagnosis(CONTRACTIVE, tolerance=tolerance)
    assert found.recommended.label == label
    assert f"Take {label}: " in found.verdict


def test_another_gradient_comes_after_those_of_the_network_but_before_memory_that_grows():
    errors = {label: CONTRACTIVE[label] for label in ("backprop", "checkpoint", "discrete-adjoint")}
    better = errors | {"continuous-adjoint": (1e-5, 3e-5)}
    found = diagnosis(better)
    assert found.recommended.label == "discrete-adjoint"
    assert "continuous-adjoint costs less and is within it now (1.0e-05), but it is another gradient" in found.verdict
    only = diagnosis(better, tolerance=1e-3)
    assert only.recommended.label == "continuous-adjoint"
    assert "certificate looks at two steps alone" in only.verdict
    assert "estimates the error as 3.0e-05" in only.verdict


def test_extrapolation_is_recommended_only_where_weights_are_smooth_in_depth():
    rough = RNG.standard_normal((STEPS, WIDTH))
    found = diagnosis(CONTRACTIVE, weights=rough)
    assert found.smoothness > 0.25 * STEPS
    assert found.recommended.label == "discrete-adjoint"
    assert (
        "predictor=extrapolate costs less and is within it now (6.0e-03), but the weights are not smooth"
        in found.verdict
    )
    far = CONTRACTIVE | {"discrete-adjoint:predictor=extrapolate": (0.3, 0.5)}
    assert "is 3.0e-01 off, since the weights are not smooth in depth" in diagnosis(far, weights=rough).verdict


def test_where_the_residual_does_not_fall_the_verdict_says_so_and_names_checkpoint():
    found = diagnosis(EXPANSIVE)
    assert found.contraction == pytest.approx(0.4 / 0.3)
    assert found.recommended.label == "checkpoint"
    for words in ("Take checkpoint", "to the last bit", "checkpoint:segments=4", "not contractive", "×1.3"):
        assert words in found.verdict


def test_a_residual_that_falls_while_the_error_does_not_is_no_contraction():
    """Where a step is far from contractive the residual is bounded, and may fall by chance."""
    found = diagnosis(EXPANSIVE | {"discrete-adjoint:iterations=2": (1.0, 0.2)})
    assert found.contraction < 1
    assert "not contractive" in found.verdict
    assert "no number of iterations helps" in found.verdict


def test_where_iterations_converge_the_number_needed_is_named():
    """0.2 a time: from 8e-3 after two, 1e-3 takes two more."""
    errors = {"discrete-adjoint": (4e-2, 5e-2), "discrete-adjoint:iterations=2": (8e-3, 1e-2), "checkpoint": (0.0, 0.0)}
    found = diagnosis(errors | {"backprop": (0.0, None)}, tolerance=1e-3)
    assert found.recommended.label == "checkpoint"
    assert "discrete-adjoint:iterations=4, not examined, should meet it" in found.verdict


def test_checkpoint_is_named_where_it_was_not_examined():
    found = diagnosis({"backprop": (0.0, None), "discrete-adjoint": (0.5, 0.1)})
    assert found.recommended.label == "backprop"
    assert "Nothing but backprop meets the tolerance of 1.0e-02. The way out is checkpoint: " in found.verdict
    assert (
        diagnosis({"backprop": (0.0, None), "discrete-adjoint": (0.5, 0.1)}, methods=["discrete-adjoint"]).recommended
        is None
    )


def test_a_certificate_at_rounding_says_nothing_of_contraction():
    """rk4 at N=512: two residuals of 1e-16, whose ratio is chance."""
    errors = CONTRACTIVE | {"discrete-adjoint": (1e-15, 3e-16), "discrete-adjoint:iterations=2": (1e-15, 4e-16)}
    found = diagnosis(errors, tolerance=5e-3)
    assert found.contraction is None
    assert "contractive" not in found.verdict
    assert "rounding in float64" in found.verdict


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_never_recommended(error):
    errors = CONTRACTIVE | {label: (error, error) for label in CONTRACTIVE if "discrete" in label}
    found = diagnosis(errors)
    assert found.recommended.label == "checkpoint"
    assert found.verdict


def test_a_failure_is_recorded_and_the_others_go_on():
    errors = CONTRACTIVE | {"discrete-adjoint": (GradientError("it cannot be undone"), None)}
    found = diagnosis(errors, tolerance=1e-3)
    assert found.of("discrete-adjoint").trouble == "it cannot be undone."
    assert found.recommended.label == "discrete-adjoint:iterations=2"
    assert "it cannot be undone" in str(found)
    with pytest.raises(GradientError):  # nothing to compare with
        diagnosis(CONTRACTIVE | {"backprop": (GradientError("no"), None)})


def test_what_is_not_offered_is_said_and_not_run():
    found = diagnosis(CONTRACTIVE, offers=lambda solver, method: method.name != "checkpoint")
    assert (found.of("checkpoint").offered, found.of("checkpoint").trouble) == (False, "not offered")
    assert found.of("checkpoint").gradient_error is None


def test_reversible_is_examined_on_the_reversible_network_and_not_recommended():
    found = diagnosis(EXPANSIVE | {"reversible": (1e-15, 1e-15)})
    (reversible,) = [each for each in found.examinations if each.gradient == Reversible()]
    assert (reversible.label, reversible.another) == ("reversible on reversible:euler", True)
    assert reversible.cost.f_forward == 2 * STEPS
    assert found.recommended.label == "checkpoint"


def test_backprop_that_does_not_repeat_itself_is_said_first():
    errors = iter([0.0, 1e-3])

    def see(method, reversible):
        return seen({"backprop": (next(errors), None)})(method, reversible)

    found = diagnose(see, [Backprop()], tolerance=1e-2, backend="toy", offers=lambda solver, method: True)
    assert found.verdict.startswith("Backprop itself is 1.0e-03 off backprop in float64")


def test_errors_are_those_of_layers_and_of_what_is_outside():
    errors = diagnosis(CONTRACTIVE).of("discrete-adjoint")
    assert errors.gradient_error == pytest.approx(4e-3)
    assert list(errors.by_layer) == [*map(str, range(STEPS)), "outside"]
    expected = 4e-3 * SIZE * np.linalg.norm(OFF["blocks"][3]) / np.linalg.norm(TRUE["blocks"][3])
    assert errors.by_layer["3"] == pytest.approx(expected)
    stem = 4e-3 * SIZE * np.linalg.norm(OFF["stem"]) / np.linalg.norm(TRUE["stem"])
    assert errors.by_layer["outside"] == errors.by_weight["stem"] == pytest.approx(stem)
    assert 0 < errors.cosine_distance < errors.gradient_error**2


def test_a_model_of_several_solves_has_their_layers_their_costs_and_the_worst_certificate():
    ode = Part("ode", solver("rk4"), 4, "shared", ({"w": ("stem", None)},), solves=2)
    found = diagnosis(CONTRACTIVE, parts=(part("encoder"), ode))
    each = found.of("discrete-adjoint")
    assert list(each.by_layer) == [*(f"encoder.{n}" for n in range(STEPS)), "ode"]
    one, other = (DiscreteAdjoint().cost(solver(name), n) for name, n in (("euler", STEPS), ("rk4", 4)))
    assert each.cost.f_backward == one.f_backward + 2 * other.f_backward
    assert each.cost.states == 3


def test_smoothness_in_depth():
    """cos(s) over a quarter of a circle: N |w'| / |w| is about pi/2, whatever N; independent layers give N sqrt(2)."""
    for steps in (64, 256):
        angle = np.pi / 2 * np.arange(steps) / steps
        smooth = np.cos(angle)[:, None] * [1.0, 0.0] + np.sin(angle)[:, None] * [0.0, 1.0]
        rough = np.random.default_rng(0).standard_normal((steps, 400))
        found = [_smoothness(weights, steps) for weights in (smooth, rough, np.ones((steps, 2)))]
        assert found == pytest.approx([np.pi / 2, np.sqrt(2) * steps, 0.0], rel=0.15)


def _smoothness(weights, steps):
    layers = tuple({"w": ("w", n)} for n in range(steps))
    return smoothness(
        Sample(0.0, {}, {"w": weights}, (Part("", solver("euler"), steps, "piecewise", layers),), "float64")
    )


def test_layers_of_different_shapes_have_no_smoothness_and_shared_ones_do_not_change():
    layers = ({"w": ("a", None)}, {"w": ("b", None)})
    weights = {"a": np.ones(2), "b": np.ones(3)}
    sample = Sample(0.0, {}, weights, (Part("", solver("euler"), 2, "piecewise", layers),), "float64")
    assert smoothness(sample) is None
    shared = dataclasses.replace(sample, parts=(Part("", solver("rk4"), 2, "shared", layers[:1]),))
    assert smoothness(shared) == 0


@pytest.mark.parametrize(
    ("label", "certificate", "estimate"),
    [
        ("discrete-adjoint", 1e-3, 1e-3),
        ("discrete-adjoint:iterations=4", 1e-3, 1e-3),
        ("discrete-adjoint:correct=no", 1e-3, 1e-3),
        ("discrete-adjoint:correct=no:anchors=4", 1e-3, 1e-3),
        ("discrete-adjoint", None, None),
        ("reversible", 1e-9, 1e-9),
        ("checkpoint:segments=4", 0.0, 0.0),
        ("backprop", None, 0.0),
        ("continuous-adjoint", None, None),
        ("continuous-adjoint", 1e-3, 1e-3),
    ],
)
def test_the_estimate_from_the_certificate_alone(label, certificate, estimate):
    assert gradient(label).estimate(certificate, 16) == (estimate if estimate is None else pytest.approx(estimate))


def test_stats_estimate_the_error_of_the_gradient():
    stats = Stats("toy", "euler", "discrete-adjoint:correct=no", 16, 16)
    assert stats.gradient_error_estimate is None
    stats.residual = 1e-3
    assert stats.gradient_error_estimate == pytest.approx(1e-3)


def test_methods_that_leave_a_certificate_say_so():
    certified = {name for name, kind in odenet.GRADIENTS.items() if kind.certifies}
    assert certified == {"discrete-adjoint", "reversible", "continuous-adjoint"}
    assert all(gradient("continuous-adjoint").certified(adaptive=adaptive) for adaptive in (True, False))
    assert set(odenet.GRADIENTS) <= set(menu())
    assert {gradient(label).label for label in menu()} == set(menu())


def test_memory_classes():
    found = diagnosis(CONTRACTIVE | {"checkpoint:segments=4": (0.0, 0.0), "checkpoint:states=3": (0.0, 0.0)})
    memory = {each.label: each.memory for each in found.examinations}
    assert memory["discrete-adjoint"] == memory["continuous-adjoint"] == memory["checkpoint:states=3"] == 0
    assert (memory["checkpoint"], memory["backprop"]) == (1, 2)
    assert found.of("checkpoint").cost == Checkpoint().cost(solver("euler"), STEPS)


def test_text_names_every_method_and_ends_with_the_verdict():
    found = diagnosis(CONTRACTIVE | {"reversible": (1e-15, 1e-15)})
    text = str(found)
    for each in found.examinations:
        assert f"\n{each.label} " in text
    (line,) = [line for line in text.splitlines() if line.endswith("recommended")]
    assert line.split()[:6] == [
        "discrete-adjoint:predictor=extrapolate",
        "6.0e-03",
        *line.split()[2:3],
        "8.0e-03",
        "8.0e-03",
        "16",
    ]
    assert text.endswith(found.verdict)


def test_rich_shows_the_tables_by_layer_too():
    from rich.console import Console

    screen = Console(width=200, record=True, file=None, quiet=False)
    with screen.capture() as caught:
        screen.print(diagnosis(CONTRACTIVE))
    for words in ("relative error by layer along depth", "1 - cos by layer", "outside", "Take "):
        assert words in caught.get()


def test_everything_is_plain_data_for_json():
    found = diagnosis(CONTRACTIVE | {"continuous-adjoint": (GradientError("no"), None)})
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["recommended"] == found.recommended.label
    assert len(plain["examinations"]) == len(CONTRACTIVE)
    assert plain["examinations"][0]["by_layer"]["outside"] == 0.0


@pytest.mark.parametrize("tolerance", [0, -1.0, True, "small", float("nan")])
def test_a_tolerance_is_a_positive_number(fake, tolerance):
    with pytest.raises(InputError, match="tolerance="):
        odenet.check_gradients(None, None, tolerance=tolerance, backend="fake")


def test_check_gradients_asks_the_backend(fake):
    spec = odenet.NetSpec("mlp", 8, 4, 4, (4,), 3)
    model = fake.build(spec, spec.init(), solver=solver("euler"), gradient=Backprop())
    found = odenet.check_gradients(model, (np.ones((2, 4)), np.zeros(2)), backend="fake", gradients="discrete-adjoint")
    assert [each.gradient for each in found.examinations] == [DiscreteAdjoint()]
    assert found.examinations[0].gradient_error == pytest.approx(0.5 / 64)
    every = odenet.check_gradients(model, (np.ones((2, 4)), np.zeros(2)), backend="fake").examinations
    assert {each.gradient for each in every} == {gradient(label) for label in menu()}
