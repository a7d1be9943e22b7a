"""What a job is given: the file's bytes and nothing of the host, private to each segment, copied by the page."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from pathlib import Path

import msgspec
import numpy
import pytest

from broker.protocol import values
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.inputs import Inputs
from provider.sandbox.inside import given
from tests.provider.sandbox.world import LIMITS, MIB, Host, make_series, make_task, write_inputs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "inputs"
    path.write_bytes(bytes(range(256)) * 1024)
    return path


def take_over(file: Path) -> int:
    memory = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    given.take_over(os.open(file, os.O_RDONLY), memory)
    return memory


def test_memory_that_was_taken_over_can_only_be_read(file: Path) -> None:
    unsealed = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    assert os.pwrite(unsealed, b"x", 0) == 1, "else this test shows nothing"
    memory = take_over(file)
    try:
        assert os.pread(memory, 1 << 20, 0) == file.read_bytes()
        for attempt in (
            lambda: os.pwrite(memory, b"x", 0),
            lambda: os.ftruncate(memory, 0),
            lambda: os.ftruncate(memory, 1 << 20),
            lambda: os.posix_fallocate(memory, 0, 1 << 20),
            lambda: mmap.mmap(memory, 0, access=mmap.ACCESS_WRITE),
            lambda: fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(OSError) as refused:
                attempt()
            assert refused.value.errno in (errno.EPERM, errno.EACCES)
        with open(f"/proc/self/fd/{memory}", "r+b") as again, pytest.raises(PermissionError):
            mmap.mmap(again.fileno(), 0)
    finally:
        os.close(memory)
        os.close(unsealed)


def test_the_hosts_file_is_closed_when_it_was_taken_over(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    memory = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    given.take_over(handle, memory)
    os.close(memory)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_only_what_was_taken_over_counts_as_taken(file: Path) -> None:
    memory = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    assert not given.is_taken(memory)
    os.close(memory)
    memory = take_over(file)
    assert given.is_taken(memory)
    os.close(memory)


def test_inputs_that_cannot_be_taken_over_are_no_fault_of_the_job(best: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be paid for a segment that never ran."""

    def create(name: str, flags: int) -> int:
        memory = make(name, flags)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        return memory

    make = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", create)
    outcome = best.run(make_task("result = 1"))
    assert (outcome.cause, outcome.segments) == (Cause.HOST, [])


def test_large_arrays_are_views_that_can_be_written_to() -> None:
    array = numpy.arange(1 << 16)
    memory = given.make_state(values.measure(parts := values.pack_parts({"a": [(array, 1.5)], "b": "x"})))
    memory[:] = b"".join(parts)
    value = given.unpack(memory)
    shown = value["a"][0][0]
    shown[0] = -1
    assert not shown.flags.owndata
    assert numpy.frombuffer(memory, "<i8", 1, len(memory) - array.nbytes)[0] == -1, "a view, not a copy"
    assert numpy.array_equal(shown[1:], array[1:])


WRITES = """
import os
before = float(args[0][0])
args[0][:] = 7
result = [before, float(args[0].sum()), args[0].flags.owndata]
"""


def test_a_job_writes_into_its_arrays_and_the_file_stays(host: Host) -> None:
    task = make_task(WRITES, numpy.ones(1 << 17))
    digest = hashlib.sha256(task.inputs.read_bytes()).digest()
    assert host.run(task).value == [1.0, 7.0 * (1 << 17), False]
    assert hashlib.sha256(task.inputs.read_bytes()).digest() == digest


def test_segments_do_not_see_what_others_wrote_into_their_items(host: Host) -> None:
    def work(item: list[object]) -> float:
        array = item[0]
        array += 1  # type: ignore[operator]  # an array
        return float(array.sum())  # type: ignore[attr-defined]  # an array

    shared = numpy.zeros(1 << 17)
    outcome = host.run(make_series(Kind.MAP, work, [[shared], [shared], [shared]], 0, 3))
    assert outcome.values == [float(1 << 17)] * 3, outcome.events


def test_a_large_state_goes_from_segment_to_segment(host: Host) -> None:
    def work(state: object, index: int) -> object:
        state += index  # type: ignore[operator]  # an array
        return state

    limits = msgspec.structs.replace(LIMITS, memory_bytes=256 * MIB, output_bytes=16 * MIB)
    task = msgspec.structs.replace(make_series(Kind.TRAIN, work, numpy.zeros(1 << 20), 1, 4), limits=limits)
    outcome = host.run(task)
    assert [float(value[0]) for value in outcome.values] == [1.0, 3.0, 6.0, 10.0], outcome.events
    first, *later = outcome.segments
    assert first.input_digest == hashlib.sha256(task.inputs.read_bytes()).digest()
    assert first.usage.bytes_in == task.inputs.stat().st_size
    for before, after in zip(outcome.segments, later, strict=False):
        assert before.spooled is not None
        assert before.output_digest == hashlib.sha256(before.spooled.read_bytes()).digest() == after.input_digest
        assert before.output_bytes == before.spooled.stat().st_size == after.usage.bytes_in


ATTACK = """
import ctypes, mmap, os, re
done = []
def attempt(name, function):
    try:
        function()
    except Exception:
        return
    done.append(name)
names = [f"/proc/{pid}/fd/{fd}" for pid in ("1", "2", "self") for fd in range(64)]
for name in names:
    try:
        target = os.readlink(name)
    except OSError:
        continue
    if not target.startswith(("pipe:", "/dev/null", "/memfd:inputs")):
        done.append(f"{name} is {target}")
    if "memfd" not in target:
        continue
    for how in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        try:
            handle = os.open(name, how)
        except OSError:
            continue
        attempt("write", lambda: os.write(handle, b"hostile"))
        attempt("truncate", lambda: os.ftruncate(handle, 0))
        attempt("grow", lambda: os.ftruncate(handle, 1 << 24))
        attempt("map", lambda: mmap.mmap(handle, 0, access=mmap.ACCESS_WRITE))
        os.close(handle)
for fd in range(3, 64):
    attempt(f"write {fd}", lambda: os.pwrite(fd, b"hostile", 0))
    attempt(f"truncate {fd}", lambda: os.ftruncate(fd, 0))
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
paths = sorted(set(re.findall(r"(/\\S+)", maps)))
result = [done, [one for one in paths if not one.startswith(("/py/", "/sp/", "/lib/", "/memfd:inputs", "/dev/zero"))],
          args[0]]
"""


def test_no_job_reaches_the_file_of_its_inputs(host: Host) -> None:
    task = make_task(ATTACK, "kept")
    before = task.inputs.read_bytes()
    os.chmod(task.inputs, 0o666)
    outcome = host.run(task)
    assert outcome.value == [[], [], "kept"], outcome.events
    assert task.inputs.read_bytes() == before


def test_inputs_count_as_memory_of_the_job(best: Host) -> None:
    if best.abilities.cgroup is None:
        pytest.skip("kernel: only a cgroup counts memory without a name")
    limits = msgspec.structs.replace(LIMITS, memory_bytes=32 * MIB)
    outcome = best.run(make_task("result = 1", bytes(64 * MIB), limits=limits))
    assert outcome.cause == Cause.OOM, outcome.events


def test_a_broken_item_fails_its_own_segment(host: Host) -> None:
    task = make_series(Kind.MAP, lambda item: item, [1, 2, 3], 0, 3)
    broken = values.pack_list([values.pack(1), b"\xc1", values.pack(3)])
    outcome = host.run(msgspec.structs.replace(task, inputs=write_inputs(broken)))
    assert [(one.index, one.cause) for one in outcome.segments] == [(0, Cause.OK), (1, Cause.PROGRAM)]
    assert "BadValue" in outcome.segments[1].error


async def test_the_host_hashes_items_and_whole_files(file: Path) -> None:
    items = [values.pack(1), values.pack(bytes(1 << 20)), values.pack("x")]
    task = make_series(Kind.MAP, lambda item: item, [], 1, 2)
    inputs = Inputs(msgspec.structs.replace(task, inputs=write_inputs(values.pack_list(items))))
    assert [await inputs.hash(index) for index in (1, 2)] == [hashlib.sha256(one).digest() for one in items[1:]]
    assert [inputs.get_size(index) for index in (1, 2)] == [len(one) for one in items[1:]]
    await inputs.close()
    whole = Inputs(msgspec.structs.replace(make_task("result = 1"), inputs=file))
    assert await whole.hash(0) == hashlib.sha256(file.read_bytes()).digest()
    await whole.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(whole.file)
