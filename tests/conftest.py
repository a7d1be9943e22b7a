"""What every test shares: one printed seed, Hypothesis profiles, the outside vectors, and the rule about skips.

With CI=true a skip is a failure, unless its reason begins with one of `EXCUSES`: what neither apt nor PyPI can bring.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("TALLY_SEED") or secrets.randbelow(2**32))
EXCUSES = {
    "vectors:": "outside test vectors are handed over beside the repository, not installed",
    "kernel:": "a kernel that forbids namespaces or cgroups is not changed by installing anything",
    "platform:": "another operating system or processor",
}

hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, max_examples=200)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Picks the profile, and hands the seed on to Hypothesis unless its own option was given."""
    hypothesis.settings.load_profile("ci" if is_ci() else "local")
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header() -> str:
    """Says how to run the same tests again."""
    return f"seed: {SEED} (run again with TALLY_SEED={SEED})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeats the seed where failures are read, since -q hides the header."""
    terminalreporter.write_line(f"seed: run again with TALLY_SEED={SEED}")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, the same for the same TALLY_SEED whatever other tests run."""
    return random.Random(f"{SEED} {request.node.nodeid}").getrandbits(63)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    random.seed(seed)


@pytest.fixture(autouse=True)
def _fresh_logs() -> Generator[None]:
    """A command that a test calls sets up the process's logs: not for the tests behind it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of outside test vectors: $TALLY_VECTORS, else ../shared/vectors beside the repository."""
    folder = Path(os.environ.get("TALLY_VECTORS") or ROOT.parent / "shared" / "vectors")
    if not folder.is_dir():
        pytest.skip(f"vectors: no folder {folder}; name one by TALLY_VECTORS")
    return folder


def is_ci() -> bool:
    """Whether skips are failures."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def forbid_skip(report: Any) -> None:
    """Turns a skip into a failure where it must not be one. A test that is expected to fail is not a skip."""
    if not (is_ci() and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(tuple(EXCUSES)):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped where CI=true allows no skip: {reason!r}; reasons that excuse begin with {[*EXCUSES]}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Applies the rule about skips to tests."""
    report = yield
    forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Applies the rule about skips to whole files."""
    report = yield
    forbid_skip(report)
    return report
