"""Figures: a bound is kept from the right side, the limit decides, and what is printed says so."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

from benchmarks.__main__ import BENCHMARKS, choose
from benchmarks.figures import Figure, compute_percentile
from benchmarks.map_segments import measure_children

ROWS = [
    (Figure(5, "ms", aim=6, limit=10), True, "met, aim reached"),
    (Figure(8, "ms", aim=6, limit=10), True, "met, aim not reached"),
    (Figure(11, "ms", aim=6, limit=10), False, "NOT met, aim not reached"),
    (Figure(10, "ms", limit=10), True, "met"),
    (Figure(7, "ms", aim=6), False, "NOT met, aim not reached"),
    (Figure(7, "ms"), None, "ms"),
    (Figure(400, "/s", aim=970, limit=300, more=True), True, "met, aim not reached"),
    (Figure(1000, "/s", aim=970, limit=300, more=True), True, "met, aim reached"),
    (Figure(299, "/s", aim=970, limit=300, more=True), False, "NOT met, aim not reached"),
    (Figure(300, "/s", limit=300, more=True), True, "met"),
]


@pytest.mark.parametrize(("figure", "met", "verdict"), ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_the_limit_decides_and_the_aim_is_told(figure: Figure, met: bool | None, verdict: str) -> None:
    assert figure.met is met
    assert figure.to_text().rstrip().endswith(verdict)
    assert figure.to_json()["met"] is met
    assert figure.to_json()["more"] is figure.more


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(share: float, value: int) -> None:
    assert compute_percentile([3, 1, 4, 2], share) == value


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (None, list(BENCHMARKS)),
        *((name, [name]) for name in BENCHMARKS),
        ("import_requester", ["import_time"]),
        ("noop_run_p50", ["noop_run"]),
        ("nonsense", []),
    ],
)
def test_every_name_that_is_listed_works_and_so_does_that_of_a_figure(only: str | None, names: list[str]) -> None:
    assert choose(only) == names


def test_the_names_that_are_listed_are_those_of_the_modules() -> None:
    for name in BENCHMARKS:
        importlib.import_module(f"benchmarks.{name}")


BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\n"


def test_cpu_time_of_children_counts_those_that_live_and_those_that_ended() -> None:
    before = measure_children()
    subprocess.run([sys.executable, "-c", BURN], check=True, stdout=subprocess.DEVNULL)
    ended = measure_children()
    assert ended - before >= 0.25
    grandchild = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN + 'sys.stdin.read()'!r}])"
    with subprocess.Popen([sys.executable, "-c", grandchild], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert measure_children() - ended >= 0.25
        process.communicate(b"")


def test_own_cpu_time_is_not_that_of_children() -> None:
    before, start = measure_children(), time.process_time()
    while time.process_time() - start < 0.2:
        pass
    assert measure_children() - before < 0.1
