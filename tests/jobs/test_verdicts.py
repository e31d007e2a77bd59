"""Each kind of verdict refuses what it must and passes what it must, and says when it could not have told."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from odenet._jobs.reproduce import controls as committed
from odenet._jobs.reproduce import verdict
from odenet._jobs.reproduce.claims import reconstruction
from odenet._jobs.reproduce.controls import Control, Verdict, changed, thresholds
from odenet._jobs.reproduce.order import of_order, order
from odenet._jobs.reproduce.report import Finished, tally, verdict_table, write_one
from odenet._jobs.reproduce.reproduction import Point, Settings, reproductions
from odenet._jobs.reproduce.results import ReproductionPoints, read
from odenet._report.fit import interval

DEPTHS = (4, 8, 16, 32, 64)


def seeds(slope, scatter, count=5, depths=DEPTHS, seed=0):
    """`N**-slope` with normal scatter of its logarithm."""
    generator = np.random.default_rng(seed)
    return {n: [*(n**-slope * np.exp(scatter * generator.standard_normal(count)))] for n in depths}


def points(mean, scatter, count=5, seed=0):
    """Errors of a reference, and of another that is `mean` points above it, give or take `scatter`."""
    generator = np.random.default_rng(seed)
    reference = generator.uniform(0.1, 0.2, count)
    noise = generator.standard_normal(count)
    return {8: [*(reference + (mean + scatter * (noise - noise.mean())) / 100)]}, {8: [*reference]}


KINDS = {
    "falls": (lambda slope, scatter, count: verdict.falls("", seeds(slope, scatter, count), 1, 0.2), 1, 1.5),
    "stays": (lambda slope, scatter, count: verdict.stays("", seeds(slope, scatter, count), 0.2), 0, 0.5),
    "at least": (lambda slope, scatter, count: verdict.falls_at_least("", seeds(slope, scatter, count), 0.5), 1, 0.4),
    "throughout": (
        lambda slope, scatter, count: verdict.falls_throughout(
            "", {0: seeds(1, scatter, count), 9: seeds(slope, scatter, count)}, 1, 0.2
        ),
        1,
        1.5,
    ),
    "smaller": (
        lambda ratio, scatter, count: verdict.smaller(
            "", {n: [ratio * x for x in each] for n, each in seeds(0, scatter, count).items()}, seeds(0, 0, count), 0.5
        ),
        0.3,
        0.8,
    ),
    "as good": (lambda mean, scatter, count: verdict.as_good("", *points(mean, scatter, count), 0.5), 0.1, 0.8),
    "no worse": (lambda mean, scatter, count: verdict.no_worse("", *points(mean, scatter, count), 0.5), -3, 0.8),
}
QUIET, LOUD = 0.02, 3.0  # scatter that tells, and scatter that drowns everything


@pytest.mark.parametrize("kind", KINDS)
def test_a_verdict_holds_fails_and_is_undecided(kind):
    judge, true, false = KINDS[kind]
    assert judge(true, QUIET, 5).state == "holds"
    assert judge(false, QUIET, 5).state == "FAILS"
    assert judge(false, LOUD, 5).state == "undecided"
    if kind not in ("no worse",):  # three points better than needed is seen through the loudest scatter
        assert judge(true, LOUD, 5).state == "undecided"
    for found in (judge(true, QUIET, 5), judge(false, QUIET, 5)):
        assert {each.must_pass for each in found.controls} == {True, False}
        assert all(each.right for each in found.controls), found.controls


@pytest.mark.parametrize("kind", ["smaller", "as good", "no worse"])
def test_one_seed_decides_no_difference(kind):
    judge, true, _ = KINDS[kind]
    assert judge(true, QUIET, 1).state == "undecided"


def test_a_mean_that_would_pass_is_not_refuted():
    """Its scatter is small enough for a claim at the centre of what is allowed, and not for one near its end."""
    near_the_end = verdict.falls("", seeds(1.17, 0.15), 1, 0.2)
    assert all(each.right for each in near_the_end.controls)
    assert near_the_end.state == "undecided"
    assert verdict.as_good("", *points(0.45, 0.2), 0.5).state == "undecided"
    assert verdict.near("", {4: [0.1, 0.19]}, 0, 0.2).state == "undecided"
    assert verdict.near("", {4: [0.3, 0.301]}, 0, 0.2).state == "FAILS"


def test_a_mean_within_the_margin_is_no_equivalence():
    """What the old verdict took: 0.1 points apart in the mean, and by 2 points from seed to seed."""
    assert verdict.as_good("", *points(0.1, 2.0), 0.5).state == "undecided"
    assert verdict.as_good("", *points(0.1, 0.1), 0.5).state == "holds"


def test_a_bound_is_of_each():
    ones = {4: [1.0, 1.0], 8: [1.0, 1.0]}
    assert verdict.below("", {4: [0.5, 0.9], 8: [0.1, 1.0]}, ones).state == "holds"
    assert verdict.below("", {4: [0.5, 0.9], 8: [0.1, 1.1]}, ones).state == "FAILS"
    zeros = {4: [0.0, 0.0]}
    blind = verdict.below("", zeros, zeros)  # twice nothing is no more than nothing
    assert (blind.state, blind.passed) == ("BLIND", False)


def test_a_gradient_known_to_be_bad_is_judged_beside():
    good, reference = points(0.05, 0.1)
    bad, _ = points(5, 0.1)
    found = verdict.as_good("", good, reference, 0.5, bad={"frozen": bad})
    assert Control("frozen", must_pass=False, passed=False) in found.controls
    assert found.state == "holds"
    blind = verdict.as_good("", good, reference, 0.5, bad={"frozen": good})
    assert (blind.state, blind.passed) == ("BLIND", False)
    wide = {n: [2 * x for x in each] for n, each in seeds(0, 0).items()}
    assert verdict.smaller("", seeds(0, 0), wide, bad={"the same": wide}).state == "holds"
    assert verdict.smaller("", seeds(0, 0), wide, bad={"itself": seeds(0, 0)}).state == "BLIND"


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, standard error 3**-0.5, and the 95 % quantile of two degrees of freedom, 2.91999."""
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.high) == (2, pytest.approx(2 + 2.9199856 / 3**0.5, rel=1e-7))
    assert found.high - 2 == pytest.approx(2 - found.low)
    assert interval([1.0]) is None


def test_the_interval_of_an_order_covers_as_often_as_it_says():
    """Of 400 samples of five seeds the true order is in nine tenths, give or take four standard errors."""
    hits = 0
    for seed in range(400):
        found = order(seeds(1.3, 0.3, seed=seed))
        assert found is not None
        hits += found.interval.low <= 1.3 <= found.interval.high
    assert abs(hits / 400 - 0.9) < 4 * math.sqrt(0.09 / 400)


@pytest.mark.parametrize("count", [1, 4])
def test_controls_scatter_as_what_they_stand_for(count):
    seen = seeds(1, 0.1, count)
    like = of_order(seen, 3)
    one, other = order(seen), order(like or {})
    assert one is not None
    assert other is not None
    assert other.interval.mean == pytest.approx(3)
    width = [each.interval.high - each.interval.low for each in (one, other)]
    assert width[0] == pytest.approx(width[1])
    assert of_order({4: [1.0], 8: [math.nan], 16: [1.0]}, 1) is None


def test_every_claim_has_thresholds_of_its_own():
    every = committed._file()
    assert set(every) - {"all"} == set(reproductions())
    for name in reproductions():
        assert all(isinstance(each, int | float) for each in thresholds(name).values())


def finished(recorded):
    each = reproductions()["reconstruction"]
    found = tuple(
        Point("torch", seed, curve, n, reconstruction.ERROR, None, None, (1 + seed) * 1e-2 * n ** -float(slope))
        for curve, (*_, slope) in reconstruction.CURVES.items()
        for n in DEPTHS
        for seed in range(2)
    )
    return Finished(each, ReproductionPoints(each.name, Settings(("torch",)), {}, 1.0, found, recorded))


def test_a_threshold_that_changed_after_the_run_is_told(tmp_path):
    now = thresholds("reconstruction")
    assert finished(now).changes == ()
    (said,) = finished({**now, "tolerance": 0.1}).changes
    assert said == f"threshold changed after the run: tolerance was 0.1, is {now['tolerance']:g}"
    assert changed({}, "reconstruction") == tuple(
        f"threshold changed after the run: {name} was not there, is {value:g}" for name, value in now.items()
    )
    assert "not recorded" in finished(None).changes[0]
    done = finished({**now, "tolerance": 0.1})
    assert said in done.section
    write_one(done, tmp_path)
    plain = json.loads((tmp_path / "verdicts.json").read_text())
    assert plain["changes"] == [said]
    assert plain["verdicts"][0]["controls"]
    assert {row["state"] for row in plain["verdicts"]} <= {"holds", "FAILS", "undecided", "BLIND"}


def test_results_keep_the_thresholds_they_began_with(tmp_path):
    results = ReproductionPoints("reconstruction", Settings(("torch",)), {}, thresholds={"tolerance": 0.1})
    results.write(tmp_path)
    again = read(tmp_path)
    assert again is not None
    assert again.resumed(Settings(("torch",), seeds=9), {}).thresholds == {"tolerance": 0.1}
    plain = json.loads((tmp_path / "points.json").read_text())
    del plain["thresholds"], plain["checksum"]  # as results of earlier versions are
    (tmp_path / "points.json").write_text(json.dumps(plain))
    older = read(tmp_path)
    assert older is not None
    assert older.thresholds is None


def test_what_is_undecided_is_counted_and_does_not_fail():
    states = [
        Verdict("a", "", "", True),
        Verdict("b", "", "", False),
        Verdict("c", "", "", False, (Control("good", True, False),)),
        Verdict("d", "", "", False, (Control("bad", False, True),)),
    ]
    assert [each.state for each in states] == ["holds", "FAILS", "undecided", "BLIND"]
    assert Verdict("e", "", "", False, (Control("good", True, True),), scattered=True).state == "undecided"
    said = tally(states)
    assert said.startswith("1 of 4 verdicts hold; 1 FAIL; 1 BLIND")
    assert "1 undecided" in said
    done = finished(thresholds("reconstruction"))
    assert not done.failed
    assert verdict_table(done)
    undecided = replace(done.reproduction, verdicts=lambda points: tuple(states[2:3]))
    assert not Finished(undecided, done.results).failed
    assert Finished(replace(undecided, verdicts=lambda points: tuple(states[3:])), done.results).failed
