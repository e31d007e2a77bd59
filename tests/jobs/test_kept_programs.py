"""Jobs keep JAX's compiled programs in a folder: bounded, to be switched off, and not for who merely imports odenet."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import jax
import pytest

import odenet_jax
from odenet._jobs.cells import programs
from odenet._jobs.cells.programs import folder, shorten
from odenet_jax.verbs import on_disk

COMPARE = ["compare", "--backend", "jax", "--solver", "euler", "--gradient", "checkpoint", "--depth", "4"]
VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
SMALL = ["--batch", "8", "--block", "mlp", "--repeats", "1", "--out"]


_OF_A_USER = ("ODENET", "JAX_COMP", "XDG", "TF_CPP")  # set by a user, or by JAX where it is imported


def python(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_USER)}
    found = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**kept, **environment}
    )
    assert found.returncode == 0, found.stderr
    return found


TWICE = """
import sys
from pathlib import Path
from odenet._jobs.cli import main
*words, cache, one, two = sys.argv[1:]
for out in (one, two):
    try:
        main([*words, out])
    except SystemExit as end:
        assert not end.code
    import jax  # not before: a job says what XLA is to report
    jax.clear_caches()
    Path(out, "kept").write_text(" ".join(sorted(path.name for path in Path(cache).rglob("*-cache"))))
"""


def row_of(out):
    """The only one of a job."""
    with (out / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_job_takes_the_programs_of_the_job_before_and_says_how_long_they_were_compiled(apart, tmp_path):
    """In processes of their own, or in one, in which JAX was made to forget them."""
    cache, one, two = (tmp_path / name for name in ("cache", "one", "two"))
    if apart:
        kept = []
        for out in (one, two):
            said = python("-m", "odenet", *COMPARE, *SMALL, str(out), ODENET_CACHE=str(cache), XLA_FLAGS="").stderr
            assert "compiled programs" not in said
            kept.append({path.name for path in cache.rglob("*-cache")})
    else:
        said = python("-c", TWICE, *COMPARE, *SMALL, *map(str, (cache, one, two)), ODENET_CACHE=str(cache)).stderr
        assert "compiled programs" not in said
        kept = [set((out / "kept").read_text().split()) for out in (one, two)]
    assert "AOT" not in said  # XLA's loader of programs, for each that another process has compiled
    there, then = kept
    assert any("value_and_grad" in name or "loss" in name for name in there)
    assert cache.stat().st_mode & 0o077 == 0
    assert then == there  # nothing was compiled anew
    first, second = row_of(one), row_of(two)
    assert float(second["compile_seconds"]) > 0.5 * float(first["compile_seconds"])
    same = ("loss", "gradient_error", "peak_bytes", "f_forward", "f_backward", "vjp", "status")
    assert {name: first[name] for name in same} == {name: second[name] for name in same}


def backend(asked):
    """One that compiles, and writes down in which folders it was to keep what."""

    class Compiling(programs.Backend):
        def keep_programs(self, folder):
            asked.append(folder)

    Compiling.__abstractmethods__ = frozenset()
    return Compiling()


@pytest.mark.parametrize(("cache", "before", "then"), [("", None, "3"), ("", "0", "0"), ("off", None, None)])
def test_what_a_backend_wants_in_the_environment_is_set_where_nobody_did(cache, before, then, monkeypatch):
    monkeypatch.setattr(programs.registry, "when_loaded", [])
    monkeypatch.setattr(os, "environ", {"ODENET_CACHE": cache} | ({} if before is None else {VARIABLE: before}))
    programs.keep_programs()
    assert os.environ.get(VARIABLE) == then


def test_a_folder_that_cannot_be_written_to_is_said_and_no_more(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ODENET_CACHE", str(tmp_path / "file" / "below"))
    asked = []
    programs._keep(backend(asked))
    said = capsys.readouterr().err
    assert asked == []
    assert said.count("compiled programs are not kept") == said.count("What to do") == 1
    assert str(tmp_path / "file") in said
    assert "ODENET_CACHE" in said


def test_what_jax_cannot_write_to_is_said_and_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ODENET_CACHE", str(tmp_path))
    (tmp_path / f"jax-{on_disk._processor()}").touch()
    programs._keep(odenet_jax.backend.load())
    assert "compiled programs are not kept" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_it_can_be_switched_off(value, monkeypatch):
    monkeypatch.setenv("ODENET_CACHE", value)
    assert folder() is None
    asked = []

    programs._keep(backend(asked))
    assert asked == []


def test_the_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ODENET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "odenet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder() == tmp_path / "home" / ".cache" / "odenet"


def test_the_files_that_were_not_used_for_the_longest_are_removed(tmp_path):
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        path = tmp_path / "deep" / name if age % 2 else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(outside)
    shorten(tmp_path, 400)
    assert sum(path.is_file() and not path.is_symlink() for path in tmp_path.rglob("*")) == 4
    shorten(tmp_path, 250)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"newest", "newer", "link"}
    assert outside.exists()
    assert programs.MOST_BYTES <= 2**30


def test_a_backend_that_is_loaded_in_a_job_is_bounded_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ODENET_CACHE", str(tmp_path))
    monkeypatch.setattr(programs, "MOST_BYTES", 10)
    ends = []
    monkeypatch.setattr(programs.atexit, "register", lambda *call: ends.append(call))
    (tmp_path / "old").write_bytes(bytes(100))
    asked = []

    programs._keep(backend(asked))
    assert asked == [tmp_path]
    assert not (tmp_path / "old").exists()
    (tmp_path / "new").write_bytes(bytes(100))
    ((function, *arguments),) = ends  # as the job ends
    function(*arguments)
    assert not (tmp_path / "new").exists()


def test_odenet_as_a_library_sets_nothing(tmp_path):
    code = "import os, odenet, odenet_jax; odenet_jax.backend.load(); odenet._backend.registry.backend('jax'); "
    code += f"import jax; assert os.environ.get('{VARIABLE}') != '3'; "
    python("-c", f"{code}assert jax.config.jax_compilation_cache_dir is None", ODENET_CACHE=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_the_users_own_stays_that(tmp_path, monkeypatch):
    monkeypatch.setenv("ODENET_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    try:
        programs._keep(odenet_jax.backend.load())
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
