"""One segment of a job run on the own machine, in a process of its own, to see what it takes.

It is the owner's own code, run as the owner and without a sandbox: nothing of this is for the code of others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from broker.protocol.folders import unpack_folder
from broker.protocol.jobs import Entry
from chain.base.errors import Refused
from chain.ledger.terms.agreement import Kind
from requester.client.packing import Work
from requester.client.texts import escape_line

MIB = 1 << 20

MARGIN = 2.0
"""How much more than was measured is suggested: another machine, other items."""

LEAST_MEMORY = 128 * MIB
LEAST_WALL_MS = 10_000

SECONDS = 3_600.0
"""How long a sample may run."""

CHILD = """
import runpy, sys
from pathlib import Path
kind, entry, function, folder = sys.argv[1:5]
from broker.protocol.values import split, unpack
data = Path(folder, "inputs").read_bytes()
given = unpack(bytes(split(data)[0])) if kind == "map" else unpack(data)
code = Path(folder, "code")
main = str(code / "main.py" if entry == "folder" else code)
sys.path.insert(0, str(code))
if kind == "run":
    sys.argv = [main, *map(str, given[0])]
    runpy.run_path(main, {"args": given[0], "inputs": given[1], "result": None}, "__main__")
else:
    call = runpy.run_path(main, None, "job")[function]
    call(given) if kind == "map" else call(given, 0)
"""
"""What the process does."""


@dataclass(frozen=True)
class Sample:
    """What one segment took, the start of Python included, and the limits that this suggests."""

    wall_ms: int
    peak_bytes: int
    wall: str
    memory: str


def sample_work(work: Work) -> Sample:
    """Run the first segment of a script or folder here. Raises `Refused` under `sample.failed` where it fails or takes
    more than an hour, `sample.function` for a pickled function: those are loaded in the sandbox alone.
    """
    if work.code.entry is Entry.FUNCTION:
        raise Refused("only a script or a folder is sampled; call your function yourself", rule="sample.function")
    with tempfile.TemporaryDirectory(prefix="tally-sample-") as name:
        folder = Path(name)
        _lay_out(work, folder)
        begun = time.monotonic()
        status, peak, said = _run(work, folder)
        wall_ms = round((time.monotonic() - begun) * 1_000)
    if status != 0:
        last = said.strip().splitlines()[-1:] or [f"it ended with status {status}"]
        raise Refused(f"the sample failed here: {escape_line(last[0], limit=500)}", rule="sample.failed")
    memory = -(-max(LEAST_MEMORY, round(peak * MARGIN)) // (64 * MIB)) * 64
    wall = -(-max(LEAST_WALL_MS, round(wall_ms * MARGIN)) // 1_000)
    return Sample(wall_ms, peak, f"{wall}s", f"{memory}MiB")


def _lay_out(work: Work, folder: Path) -> None:
    (folder / "inputs").write_bytes(work.inputs.join())
    code = folder / "code"
    if work.code.entry is not Entry.FOLDER:
        code.write_bytes(work.code.blob)
        return
    for name, data in unpack_folder(work.code.blob).items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(data)


def _run(work: Work, folder: Path) -> tuple[int, int, str]:
    """(status, peak bytes, what it said last)."""
    kind = {Kind.RUN: "run", Kind.MAP: "map", Kind.TRAIN: "train"}[work.kind]
    command = [sys.executable, "-c", CHILD, kind, work.code.entry.value, work.code.function, str(folder)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "said").open("wb+") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
        )
        status, peak = _wait(process)
        said.seek(max(0, said.tell() - 4_096))
        return status, peak, said.read().decode("utf-8", "replace")


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Status and peak memory in bytes; where the system has no such figure, 0."""
    deadline = time.monotonic() + SECONDS
    while True:
        if not hasattr(os, "wait4"):
            return process.wait(SECONDS), 0
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1_024)
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Refused("the sample took more than an hour and was stopped", rule="sample.failed")
        time.sleep(0.01)
