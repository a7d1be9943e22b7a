"""Every segment of the demo, replayed alone from its committed input, gives the committed output; a job that keeps
state between its segments is found out by the same comparison."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.protocol.values import pack
from chain.base.hashing import compute_digest
from tests.e2e.market import open_street
from tests.e2e.replay import FinishedJob, find_differences, open_jobs, open_sandbox

pytestmark = [pytest.mark.check, pytest.mark.timeout(400)]

TALLY = str(Path(sys.executable).with_name("tally"))
COUNT = 5


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the users of a sandbox can enter."""
    with tempfile.TemporaryDirectory(prefix="tally-replay-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """The folder of a demo that was played to its end."""
    command = [TALLY, "demo", "--json", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path


async def test_every_segment_of_the_demo_gives_its_committed_output_alone(open_folder: Path, played: Path) -> None:
    replayed = 0
    async with open_sandbox(open_folder) as sandbox:
        for owner in ("alice", "bob"):
            with open_jobs(played / owner / "requester") as jobs:
                for job in jobs:
                    assert await find_differences(sandbox, job, open_folder) == []
                    replayed += len(job.records)
    assert replayed == 67


_kept: list[int] = []


def hoard(item: int) -> list[Any]:
    """Leaves a mark everywhere it can, and gives back what marks it finds: more than its own if anything leaks."""
    import builtins
    import os
    from pathlib import Path

    _kept.append(item)
    everywhere = vars(builtins)
    everywhere["kept"] = [*everywhere.get("kept", []), item]
    os.environ["KEPT"] = os.environ.get("KEPT", "") + str(item)
    seen = []
    for folder in ("/tmp", "/job/tmp", "/dev/shm", "/var/tmp", os.getcwd(), str(Path.home())):
        try:
            Path(folder, f"kept-{item}").write_text("x")
            seen.append([folder, sorted(path.name for path in Path(folder).glob("kept-*"))])
        except OSError:
            seen.append([folder, ["cannot"]])
    return [list(_kept), everywhere["kept"], os.environ["KEPT"], seen]


def hoard_on(state: list[Any], index: int) -> list[Any]:
    """The same in a chain: the state says what was seen."""
    return [*state, hoard(index)]


async def test_what_a_segment_leaves_behind_is_gone_before_the_next(open_folder: Path, tmp_path: Path) -> None:
    async with open_street(tmp_path) as street:
        wishes: dict[str, Any] = {"cap": 5, "wall": 5, "memory": "256MiB"}
        mapped = await street.market.map(hoard, range(COUNT), **wishes)
        await street.market.train(hoard_on, [], COUNT, **wishes)
        assert [value[:3] for value in mapped.values] == [[[item], [item], str(item)] for item in range(COUNT)]
        written = [names for value in mapped.values for _, names in value[3] if names != ["cannot"]]
        assert written
    with open_jobs(tmp_path / "requester") as jobs:
        assert len(jobs) == 2
        async with open_sandbox(open_folder) as sandbox:
            for job in jobs:
                assert await find_differences(sandbox, job, open_folder) == []


async def test_a_provider_that_runs_segments_in_one_process_is_found_out(open_folder: Path, tmp_path: Path) -> None:
    async with open_street(tmp_path) as street:
        await street.market.map(count_calls, range(COUNT), cap=5, wall=5, memory="256MiB")
    with open_jobs(tmp_path / "requester") as jobs:
        [job] = jobs
        async with open_sandbox(open_folder) as sandbox:
            assert await find_differences(sandbox, job, open_folder) == []
            leaky = run_in_one_process(job)
            assert await find_differences(sandbox, leaky, open_folder) == [
                f"{job.documents.spec.title}: segment {index}" for index in range(1, COUNT)
            ]


_calls: list[int] = []


def count_calls(item: int) -> int:
    """How often it was called in this process."""
    _calls.append(item)
    return len(_calls)


def run_in_one_process(job: FinishedJob) -> FinishedJob:
    """The records that a provider would sign which calls the function again and again in one process."""
    values = [pack(count_calls(record.index), name="value") for record in job.records]
    records = tuple(
        msgspec.structs.replace(record, output=compute_digest(value))
        for record, value in zip(job.records, values, strict=True)
    )
    return FinishedJob(job.documents, records, job.blobs)
