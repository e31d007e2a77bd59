"""Names are forgiven what cannot be misunderstood, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet import InputError, UnknownNameError
from odenet._names import boolean, lookup

TABLE = {"forward-euler": 1, "heun": 2}
ALIASES = {"resnet": "forward-euler"}


@pytest.mark.parametrize("name", ["forward-euler", "Forward_Euler", " forward-euler ", "resnet", "RESNET"])
def test_case_underscores_spaces_and_aliases_are_forgiven(name):
    assert lookup("solver", name, TABLE, ALIASES) == 1


@given(st.text())
def test_any_other_text_is_an_error_that_says_what_is_allowed(text):
    plain = text.strip().lower().replace("_", "-")
    if plain in TABLE or plain in ALIASES:
        return
    with pytest.raises(UnknownNameError) as error:
        lookup("solver", text, TABLE, ALIASES)
    assert all(name in str(error.value) for name in (*TABLE, *ALIASES))
    assert repr(text) in str(error.value)


def test_the_nearest_name_is_suggested():
    with pytest.raises(UnknownNameError, match="take heun"):
        lookup("solver", "hune", TABLE)
    with pytest.raises(UnknownNameError, match="take resnet"):
        lookup("solver", "resnets", TABLE, ALIASES)
    with pytest.raises(UnknownNameError, match="see `odenet list` for every solver"):
        lookup("solver", "xyzzy", TABLE)


@pytest.mark.parametrize("name", [None, 3, b"heun", ["heun"]])
def test_what_is_no_text_is_no_name(name):
    with pytest.raises(InputError, match=f"given as .*{type(name).__name__}"):
        lookup("solver", name, TABLE)


@given(st.text())
def test_truth_is_spelled_in_eight_ways(text):
    plain = text.strip().lower()
    if plain in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return
    with pytest.raises(InputError, match="neither true nor false"):
        boolean(text)


def test_false_is_not_true():
    assert [boolean(text) for text in ("true", "Yes", "on", "1")] == [True] * 4
    assert [boolean(text) for text in ("false", "No", " off ", "0")] == [False] * 4
