"""The report as a browser lays it out: nothing sticks out of a telephone's screen or a desk's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner

import odenet
from odenet._jobs import benchmark
from odenet._jobs.cli import command_named
from odenet._jobs.compare import command as compare
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.results import SolvePlan, WorkPrecision
from odenet._solvers.names import solver
from odenet._test_problems.named import problem_named

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]

# what is wider than the screen, but for what lies in a box that scrolls by itself, and text too small to read
LOOK = """<script>addEventListener("load", () => {
  const scrolls = e => e && (/(auto|scroll|hidden)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const wide = [...document.body.querySelectorAll("*")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement));
  const small = [...document.body.querySelectorAll("p, li, td, th, h1, h2, figcaption")].filter(
    e => e.innerText && e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 11);
  const svgs = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width);
  parent.postMessage(JSON.stringify({
    width: innerWidth, page: document.documentElement.scrollWidth, wide: wide.map(e => e.tagName),
    cut: [...document.querySelectorAll(".stacked")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
    small: small.map(e => e.tagName), narrowest: Math.min(...svgs),
    figure: document.querySelector("svg").getBoundingClientRect().top}), "*");
})</script>"""

# a window of chromium is 500 pixels wide at least, a frame may be narrower
FRAME = """<body><iframe src="SOURCE" style="width: WIDTHpx; height: 900px; border: 0"></iframe><script>
addEventListener("message", e => { document.body.dataset.seen = e.data; })</script></body>"""


def seen(page, width):
    """How a page is laid out in a window of that many pixels."""
    copy = page.with_name(f"seen-{width}.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME.replace("SOURCE", copy.name).replace("WIDTH", str(width)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000", "--virtual-time-budget=9000"]
    shot = subprocess.run([BROWSER, *flags, "--dump-dom", frame.as_uri()], capture_output=True, text=True, check=True)
    found = re.search(r'data-seen="([^"]*)"', shot.stdout)
    return json.loads(found[1].replace("&quot;", '"'))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    results = odenet.compare(backends="torch", depths=(2, 4, 8), repeats=1)
    return compare.write(results, folder)[0]


@pytest.fixture(scope="module")
def diagram(tmp_path_factory):
    plan = SolvePlan((problem_named("decay"),), ("torch",), (solver("dopri5"),), (1e-3, 1e-5, 1e-7), repeats=1)
    folder = tmp_path_factory.mktemp("diagram")
    return benchmark.write(WorkPrecision(plan, {"cpu": "x" * 200}, tuple(measure(plan, plan.cells()))), folder)[0]


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduction")
    done = CliRunner().invoke(command_named("reproduce"), ["reconstruction", "--quick", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder / "report.html"


@pytest.mark.parametrize("name", ["comparison", "diagram", "reproduction"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_sticks_out(request, name, width):
    found = seen(request.getfixturevalue(name), width)
    assert found["width"] == width
    assert found["page"] <= width
    assert (found["wide"], found["small"], found["cut"]) == ([], [], 0)
    assert found["narrowest"] >= min(width - 60, 600)  # a figure of 400 pixels would have letters of 4: it scrolls
    assert found["figure"] < 900  # it is on the first screen
