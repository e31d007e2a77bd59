"""The schedule of recomputation: as few evaluations as any, no more states than allowed, and the published order."""

from __future__ import annotations

from functools import cache
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet._gradients.revolve import advances, schedule

# What the published program does: src/revolve.cpp by Griewank, Walther and Stumm, as in pyrevolve 2.2.8
# (github.com/devitocodes/pyrevolve, commit d0b98c5), built and run with revolve_create_offline(steps, states).
# A9 advance to state 9, T7 keep it, R7 go back to it, F9 first VJP, Y8 VJP of step 8.
PUBLISHED = {
    (7, 2): "T0 A3 T3 A6 F6 R3 A5 Y5 R3 A4 Y4 R3 Y3 R0 A1 T1 A2 Y2 R1 Y1 R0 Y0",
    (10, 3): "T0 A4 T4 A7 T7 A9 F9 R7 A8 Y8 R7 Y7 R4 A5 T5 A6 Y6 R5 Y5 R4 Y4 R0 A1 T1 A2 T2 A3 Y3 R2 Y2 R1 Y1 R0 Y0",
    (20, 4): (
        "T0 A5 T5 A11 T11 A16 T16 A19 F19 R16 A18 Y18 R16 A17 Y17 R16 Y16 R11 A13 T13 A15 Y15 R13 A14 Y14 R13 Y13 R11 "
        "A12 Y12 R11 Y11 R5 A6 T6 A8 T8 A10 Y10 R8 A9 Y9 R8 Y8 R6 A7 Y7 R6 Y6 R5 Y5 R0 A1 T1 A2 T2 A3 T3 A4 Y4 R3 Y3 "
        "R2 Y2 R1 Y1 R0 Y0"
    ),
    (50, 5): (
        "T0 A21 T21 A34 T34 A41 T41 A46 T46 A49 F49 R46 A48 Y48 R46 A47 Y47 R46 Y46 R41 A43 T43 A45 Y45 R43 A44 "
        "Y44 R43 Y43 R41 A42 Y42 R41 Y41 R34 A36 T36 A38 T38 A40 Y40 R38 A39 Y39 R38 Y38 R36 A37 Y37 R36 Y36 R34 "
        "A35 Y35 R34 Y34 R21 A26 T26 A29 T29 A31 T31 A33 Y33 R31 A32 Y32 R31 Y31 R29 A30 Y30 R29 Y29 R26 A27 T27 "
        "A28 Y28 R27 Y27 R26 Y26 R21 A22 T22 A23 T23 A24 T24 A25 Y25 R24 Y24 R23 Y23 R22 Y22 R21 Y21 R0 A6 T6 A11 "
        "T11 A15 T15 A18 T18 A20 Y20 R18 A19 Y19 R18 Y18 R15 A16 T16 A17 Y17 R16 Y16 R15 Y15 R11 A12 T12 A13 T13 "
        "A14 Y14 R13 Y13 R12 Y12 R11 Y11 R6 A7 T7 A8 T8 A9 T9 A10 Y10 R9 Y9 R8 Y8 R7 Y7 R6 Y6 R0 A1 T1 A2 T2 A3 T3 "
        "A4 T4 A5 Y5 R4 Y4 R3 Y3 R2 Y2 R1 Y1 R0 Y0"
    ),
}
pairs = st.integers(1, 80).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(1, steps + 3)))


def actions(steps, states):
    """Ours in those words: the forward pass to the last step, then the turns."""
    made = schedule(steps, states)
    *kept, last = made.forward
    told = [word for n in kept for word in ([f"A{n}"] if n else []) + [f"T{n}"]] + [f"A{last}", f"F{last}"]
    for turn in made.turns[1:]:
        told.append(f"R{turn.origin}")
        for n in turn.keep:
            told += [f"A{n}", f"T{n}"] if n != turn.step else []
        told += [f"A{turn.step}"] * (turn.step != turn.origin) + [f"Y{turn.step}"]
    return " ".join(told)


@cache
def fewest(steps, states):
    """Steps forward of the best schedule there is, by trying every place for the next kept state."""
    if steps == 1:
        return 0
    if states == 1:
        return steps * (steps - 1) // 2
    return min(n + fewest(steps - n, states - 1) + fewest(n, states) for n in range(1, steps))


@pytest.mark.parametrize(("steps", "states"), PUBLISHED)
def test_the_order_is_that_of_the_published_program(steps, states):
    assert actions(steps, states) == PUBLISHED[steps, states]


@given(pairs)
def test_no_schedule_takes_fewer_steps_forward(pair):
    """The turns' ways, the theorem's closed form, and a search over all schedules."""
    steps, states = pair
    made = schedule(steps, states)
    again = sum(turn.step - turn.origin for turn in made.turns)
    assert (steps - 1) + again == advances(steps, states) == fewest(steps, states)


@given(pairs)
def test_each_step_is_turned_once_from_a_state_that_is_held_and_no_more_are_held_than_allowed(pair):
    steps, states = pair
    made = schedule(steps, states)
    assert [turn.step for turn in made.turns] == list(reversed(range(steps)))
    assert made.forward[0] == 0
    assert made.forward[-1] == steps - 1
    assert list(made.forward) == sorted(set(made.forward))
    held = set(made.forward)
    assert len(held - {steps - 1}) <= states  # beside the current one
    for turn in made.turns:
        assert turn.origin in held
        assert all(turn.origin < n <= turn.step for n in turn.keep)
        assert list(turn.keep) == sorted(turn.keep)
        held |= set(turn.keep)
        assert len(held - {turn.step}) <= states
        held.discard(turn.step)
    assert not held


@given(st.integers(1, 8), st.integers(1, 8))
def test_as_many_steps_as_the_theorem_says_are_taken_at_most_r_times(states, r):
    """C(states + r, states) steps can be turned with r steps forward for each (Griewank, Walther 2000, lemma 1)."""
    longest = comb(states + r, states)
    if longest > 2000:
        return

    def most(steps):
        taken = [1] * (steps - 1) + [0]
        for turn in schedule(steps, states).turns:
            for n in range(turn.origin, turn.step):
                taken[n] += 1
        return max(taken)

    assert most(longest) <= r < most(longest + 1)


def test_with_a_state_for_each_step_nothing_is_computed_again_and_with_one_everything():
    assert all(turn.origin == turn.step for turn in schedule(40, 40).turns)
    assert schedule(40, 40) == schedule(40, 1000)
    assert {turn.origin for turn in schedule(40, 1).turns[1:]} == {0}


def test_thousands_of_steps_are_scheduled_whatever_the_states():
    for states in (1, 30, 3000, 5000):
        assert len(schedule(5000, states).turns) == 5000
