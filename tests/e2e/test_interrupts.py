"""Ctrl-C at moments spread over the demo by seed: afterwards processes, folders, cgroups, mounts and shared memory
are as before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.host import read_host

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

TALLY = str(Path(sys.executable).with_name("tally"))
MOMENTS = 10


@pytest.fixture(scope="module")
def length() -> float:
    """Seconds that an undisturbed demo takes here and now."""
    started = time.monotonic()
    subprocess.run([TALLY, "demo", "--json"], capture_output=True, timeout=280, check=True)
    return time.monotonic() - started


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_ctrl_c_leaves_the_host_as_it_was(moment: int, length: float, seed: int, tmp_path: Path) -> None:
    before, environment = read_host(tmp_path), {**os.environ, "TMPDIR": str(tmp_path)}
    share = (moment + random.Random(seed + moment).random()) / MOMENTS
    process = subprocess.Popen(
        [TALLY, "demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        process.wait(timeout=share * length)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode in (0, 130, -signal.SIGINT), said
    assert before.added(read_host(tmp_path)) == {}, f"left behind at {share:.0%} of {length:.1f} s:\n{said}"
