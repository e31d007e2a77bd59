"""`odenet check` after a few steps of training: what a method does at the start is not what it does afterwards."""

import json

from click.testing import CliRunner

from odenet._jobs.check.command import command

ZERO = ["--block", "mlp", "--depth", "6", "--width", "4", "--batch", "4", "--start", "zero"]


def run(*flags):
    return CliRunner().invoke(command, [*ZERO, "--gradient", "discrete-adjoint", *flags])


def test_the_verdict_is_of_weights_after_a_few_steps_of_training(tmp_path):
    done = run("--backend", "torch", "--json", str(tmp_path / "a.json"))
    assert done.exit_code == 0
    record = json.loads((tmp_path / "a.json").read_text())
    (row,) = record["checks"]
    # blocks of zeros are undone exactly, and are no blocks of zeros after a step
    assert row["gradient_error"] < 1e-6 < row["later"] < 1e-2
    assert f"({row['later']:.1e} after a few steps of training)" in done.stdout.replace("\n", " ")
    later = row["later"]
    done = run("--backend", "torch", "--tolerance", str(later / 2))
    assert done.exit_code == 1
    assert f"gradient error {later:.1e} after a few steps of training is above" in done.stderr.replace("\n", " ")
    assert "met it only before training" in done.stdout.replace("\n", " ")


def test_a_network_that_cannot_be_trained_is_said_to_be_so(fake):
    done = run("--backend", "fake", "--start", "smooth", "--block", "conv", "--tolerance", "0.5")
    assert "It could not be examined after a few steps of training" in done.stdout
