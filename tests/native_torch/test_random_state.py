"""What says whether somebody has drawn from Python's or NumPy's generator, in the memory of these and without it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from odenet_torch.field import random_state

DRAWS = {
    "Python": random.random,
    "a bit of Python": lambda: random.getrandbits(1),
    "NumPy": np.random.rand,
    "a bit of NumPy": lambda: np.random.randint(2),
}


@pytest.fixture(params=[True, False], ids=["in memory", "by what it says"])
def _way(request, monkeypatch):
    assert random_state._WINDOWS is not None  # the layout of the Pythons and NumPys that are tested
    if not request.param:
        monkeypatch.setattr(random_state, "_WINDOWS", None)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_draw_is_seen(draw):
    for _ in range(700):  # once around the words of a Mersenne twister
        before = random_state.outside()
        assert random_state.outside() == before
        draw()
        assert random_state.outside() != before


@pytest.mark.usefixtures("_way")
def test_a_generator_that_is_set_back_is_as_it_was():
    before = random_state.outside()
    with random_state.others() as drawn:
        random.random()
        np.random.rand()
        assert drawn()
    assert random_state.outside() == before


@pytest.mark.parametrize("place", [0, 1], ids=["Python", "NumPy"])
def test_another_layout_is_noticed(place, monkeypatch):
    """Four bytes off: the memory is that of the generators still."""
    places = random_state._places

    def moved(*generators):
        found = [*places(*generators)]
        found[place] += 4 if place == 0 else -4
        return tuple(found)

    monkeypatch.setattr(random_state, "_places", moved)
    assert random_state._windows() is None


def test_a_run_moves_what_it_draws_from_and_does_not_seed():
    own, seeded, other = random.Random(1), random.Random(1), random.Random(1)
    runs = []

    def run():
        own.random()
        seeded.seed(3)
        seeded.random()
        if not runs:  # of another thread
            other.random()
        runs.append(None)

    assert random_state.moved(run, lambda: [x.getstate() for x in (own, seeded, other)]) == [0]
    assert len(runs) == 3


@pytest.mark.parametrize("busy", [4, 100], ids=["with a free moment", "always"])
def test_runs_longer_than_the_moments_between_another_thread_s_draws(busy, monkeypatch):
    """More are made while somebody draws in the pauses, too: one run that moves nothing is enough."""
    other, runs = random.Random(1), []

    def run():
        runs.append(None)
        if len(runs) <= busy:
            other.random()

    monkeypatch.setattr(random_state.time, "sleep", lambda _: other.random())
    moved = random_state.moved(run, lambda: [other.getstate()])
    assert (moved, len(runs)) == (([], 5) if busy == 4 else ([0], random_state._RUNS))


def test_what_nobody_draws_in_the_pauses_is_the_run_s(monkeypatch):
    own, runs, pauses = random.Random(1), [], []
    monkeypatch.setattr(random_state.time, "sleep", pauses.append)
    assert random_state.moved(lambda: runs.append(own.random()), lambda: [own.getstate()]) == [0]
    assert (len(runs), len(pauses)) == (3, 1)
