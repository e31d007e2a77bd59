"""Networks that nobody here wrote: what a gradient method does to each is right, refused, or said with its number.

All of them are judged by `make test-architectures`; those of transformers and torch run here, eight in the fast suite.
"""

import json

import pytest
from catalogue import CATALOGUE, PACKAGES
from judge import BEGUN, LIMITED, METHODS, PROMISED, judged, verdict
from quick import quick
from table import PAGE, RESULTS, written

FAST = ("gpt2", "llama", "mixtral", "vit", "bit", "convnext", "bert", "torch-prenorm-encoder")
# checkpoint of the others is held to more in test_converted_networks (values and buffers) and test_convert
CHECKPOINTED = ("convnext", "torch-prenorm-encoder")
FAST_CELLS = [
    (name, method)
    for name in FAST
    for method in METHODS
    if method not in (LIMITED, BEGUN) and (method != "checkpoint" or name in CHECKPOINTED)
]
FAST_CELLS += [("gpt2", BEGUN), ("llama", BEGUN), ("convnext", LIMITED)]
# the method whose gradient may be off is asked of all eight; those that run layers again of three that differ most: of
# experts that are chosen, of a convolutional network, and of no residual layers. `make test-slow` asks all of all
QUICK = [
    *((name, "discrete-adjoint") for name in FAST),
    *((name, "checkpoint:bits=8") for name in ("mixtral", "convnext", "torch-prenorm-encoder")),
    *((name, "auto") for name in ("mixtral", "bit", "bert")),
    *(("convnext", LIMITED), ("gpt2", BEGUN), ("torch-prenorm-encoder", "checkpoint")),
]
HERE = [name for name, package in PACKAGES.items() if package in ("transformers", "torch")]
GOOD = ("right", "said", "refused")


@pytest.mark.parametrize(("network", "method"), quick(FAST_CELLS, QUICK))
@pytest.mark.filterwarnings("ignore")  # of somebody else's code
def test_a_gradient_is_right_refused_or_said_at_the_start(network, method):
    judgement = judged(network, "start", method)
    assert judgement.verdict in GOOD, judgement
    if method in ("checkpoint", "auto"):
        assert judgement.verdict == "right", judgement


@pytest.mark.slow
@pytest.mark.parametrize("state", ["start", "trained"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", HERE)
@pytest.mark.filterwarnings("ignore")
def test_a_gradient_is_right_refused_or_said(network, method, state):
    judgement = judged(network, state, method)
    assert judgement.verdict in GOOD, judgement


def test_the_verdicts():
    judged_by = "discrete-adjoint"
    nothing = float("nan")
    assert verdict(judged_by, 0.05, 2.0, nothing) == "right"
    assert verdict(judged_by, 0.2, 0.3, nothing) == "wrong in silence"
    assert verdict(judged_by, float("inf"), float("inf"), nothing) == "wrong in silence"
    assert verdict(judged_by, 0.2, 0.3, 0.06) == verdict(judged_by, 0.2, 0.3, 0.95) == "said wrongly"
    assert verdict(judged_by, 0.2, 0.3, 0.07) == verdict(judged_by, 0.2, 0.3, 0.85) == "said"
    assert verdict(judged_by, 3.0, 4.0, 1e9) == "said"
    assert verdict("checkpoint", 2e-6, 2e-6, nothing) == "wrong in silence"


def test_the_results_are_of_all_networks_and_none_is_wrong_in_silence():
    rows = json.loads(RESULTS.read_text())
    cells = {(row["network"], row["method"], row["state"]) for row in rows}
    expected = {(name, method, state) for name in CATALOGUE for method in METHODS for state in ("start", "trained")}
    assert cells == expected
    assert len(CATALOGUE) >= 30
    for row in rows:
        assert row["verdict"] in GOOD, row
        if row["verdict"] != "refused":
            assert verdict(row["method"], row["error"], row["worst"], row["said"]) == row["verdict"]
        assert row["verdict"] == "right" or row["method"] not in ("checkpoint", "auto"), row
        # `auto` is within its tolerance, or refused: a number over it is what it leaves a method for
        assert row["verdict"] != "said" or not row["method"].startswith("auto"), row
    assert set(PROMISED) == set(METHODS)


def test_the_page_has_the_tables_of_the_results():
    page = PAGE.read_text()
    assert written(page, json.loads(RESULTS.read_text())) == page
