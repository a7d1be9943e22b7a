"""Jobs from end to end: what they see, what they return, and by which cause they end, for each way of running them."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy
import pytest

from broker.protocol import values
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.inside import wire
from provider.sandbox.spec import Limits, Started
from tests.provider.sandbox import bodies
from tests.provider.sandbox.world import LIMITS, MIB, Host, make_series, make_task


def limited(**changes: int) -> Limits:
    return msgspec.structs.replace(LIMITS, **changes)


@dataclass(frozen=True)
class End:
    """A body, its limits, the cause it ends by, and words that the segment's error or the end's detail must hold."""

    name: str
    body: Callable[..., object] | str
    arguments: tuple[object, ...]
    cause: Cause
    says: tuple[str, ...] = ()
    limits: Limits = LIMITS


ENDS = [
    End("raises", bodies.fail, ("no such luck",), Cause.PROGRAM, ("Traceback", "bodies.py", "Error: no such luck")),
    End(
        "script raises",
        "def f():\n    return 1 / 0\nf()\n",
        (),
        Cause.PROGRAM,
        ("line 2, in f", "return 1 / 0"),
    ),
    End("syntax error", "result = (", (), Cause.PROGRAM, ("SyntaxError",)),
    End("no pickle", bodies.leave, (), Cause.PROGRAM),
    End("exit status", bodies.leave, (3,), Cause.PROGRAM, ("exit status 3",)),
    End("sys.exit", "import sys\nsys.exit('enough')\n", (), Cause.PROGRAM, ("SystemExit: enough",)),
    End("can't be carried", bodies.uncarried, (), Cause.PROGRAM, ("CannotCarry: result['model'][2]: a set can't",)),
    End("memory", bodies.mem_bomb, (256 * MIB,), Cause.OOM, ("peak",)),
    End("CPU", bodies.spin, (), Cause.CPU, ("CPU time of 300 ms",), limited(cpu_ms=300)),
    End("CPU of children", bodies.spin_in_children, (3,), Cause.CPU, (), limited(cpu_ms=500)),
    End("wall", bodies.sleep_long, (), Cause.WALL, ("wall time of 700 ms",), limited(wall_ms=700)),
    End("stopped", bodies.die_by, (19,), Cause.WALL, (), limited(wall_ms=700)),
    End("output", bodies.send_much, (5 * MIB,), Cause.OUTPUT, (f"more than {4 * MIB} bytes",)),
    End("log", bodies.stdout_flood, (MIB,), Cause.LOG, (f"more than {1 << 16} bytes",)),
    End("segmentation fault", bodies.die_by, (11,), Cause.SIGNAL, ("SIGSEGV",)),
    End("killed", bodies.die_by, (9,), Cause.SIGNAL, ("SIGKILL",)),
    End("forbidden entry", bodies.call_x32, (), Cause.POLICY),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
def test_cause(end: End, host: Host) -> None:
    if end.cause == Cause.POLICY and os.uname().machine != "x86_64":
        pytest.skip("platform: x32 is an entry of x86-64 alone")
    outcome = host.run(make_task(end.body, *end.arguments, limits=end.limits))
    assert outcome.cause == end.cause, outcome.events
    (segment,) = outcome.segments
    assert (segment.index, segment.cause, segment.output) == (0, end.cause, b"")
    told = segment.error + outcome.ended.detail
    assert [words for words in end.says if words not in told] == [], told
    assert len(segment.error) <= 16 * 1024


def test_hostile_text_of_an_error_is_bounded(best: Host) -> None:
    outcome = best.run(make_task("class E(Exception):\n    def __str__(self): return 'x' * 10**6\nraise E\n"))
    assert outcome.cause == Cause.PROGRAM
    assert 16_000 < len(outcome.segments[0].error) <= 16 * 1024


def test_peak_names_what_was_reached(host: Host) -> None:
    outcome = host.run(make_task(bodies.mem_bomb, 256 * MIB))
    floor = 64 * MIB if host.abilities.cgroup is None else 120 * MIB
    assert floor <= outcome.usage.peak_bytes <= LIMITS.memory_bytes + 64 * MIB


def test_values_go_in_and_out(host: Host) -> None:
    array = numpy.arange(12.0).reshape(3, 4)
    outcome = host.run(make_task("print(args)\nresult = [args[0] * 2, inputs, 2**80]", array, name="x", more=(1, None)))
    doubled, named, large = outcome.value
    assert numpy.array_equal(doubled, array * 2)
    assert (named, large) == ({"name": "x", "more": (1, None)}, 2**80)
    assert outcome.log().startswith(b"(array([[")


def test_events_come_in_order_with_figures(host: Host) -> None:
    task = make_task("import sys\nprint('one')\nprint('two', file=sys.stderr)\nsum(range(3_000_000))\nresult = 5\n")
    outcome = host.run(task)
    names = [type(event).__name__ for event in outcome.events]
    assert names[0] == "Started"
    assert names[-2:] == ["SegmentDone", "Ended"]
    assert (outcome.log("out"), outcome.log("err")) == (b"one\n", b"two\n")
    (segment,) = outcome.segments
    assert segment.input_digest == hashlib.sha256(task.inputs.read_bytes()).digest()
    assert segment.usage.bytes_out == len(segment.output) + 8
    assert outcome.usage.bytes_in == len(task.code) + task.inputs.stat().st_size
    assert outcome.usage.cpu_ms > 0
    assert outcome.usage.wall_ms >= segment.usage.wall_ms > 0
    assert outcome.usage.peak_bytes > MIB
    started = outcome.events[0]
    assert isinstance(started, Started)
    assert started.at_ms == segment.started_ms
    assert outcome.ended.level == host.abilities.level


def test_a_job_sees_its_own_world_only(host: Host) -> None:
    seen = host.run(make_task(bodies.look_around, ("numpy", "ctypes", "asyncio"))).value
    assert seen["version"] == sys.version
    assert seen["root"] == sorted(["dev", "job", "lib", "lib64", "proc", "py", "sp", "tmp"])
    assert seen["dev"] == ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert set(seen["descriptors"]) <= {"/dev/null", "pipe", "/memfd", "/proc/2/fd", "/proc/3/fd"}
    assert (seen["uid"], seen["hostname"], seen["modules"]) == (1000, "tallystick", [])
    assert seen["pid"] <= 4
    status = seen["status"]
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(seen["environ"]) == {
        "HOME", "LANG", "LD_LIBRARY_PATH", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "PATH", "PWD", "PYTHONHASHSEED", "PYTHONPATH", "PYTHONUTF8", "TMPDIR", "TZ",
    }  # fmt: skip


def test_chance_is_fixed_per_segment(best: Host) -> None:
    def draw(item: int) -> list[object]:
        return bodies.draw()

    first = best.run(make_task(bodies.draw)).value
    again = best.run(make_task(bodies.draw)).value
    assert repr(first) == repr(again)
    series = best.run(make_series(Kind.MAP, draw, [0, 1, 2], 0, 3)).values
    alone = best.run(make_series(Kind.MAP, draw, [0, 1, 2], 2, 1)).values
    assert repr(alone[0]) == repr(series[2])
    assert len({repr(one[:2]) for one in series}) == 3
    assert len({one[2] for one in series}) == 1, "the hash seed is one for all jobs"


def test_segments_leave_nothing_to_each_other(host: Host) -> None:
    outcome = host.run(make_series(Kind.MAP, bodies.meddle, [1, 2, 3], 0, 3))
    assert outcome.cause == Cause.OK, outcome.events
    assert outcome.values == [[None, None, [], [], [], 3]] * 3


SHARED = {
    "a shared mapping": "import mmap\npage = mmap.mmap(-1, 4096)\n",
    "a shared mapping of a file": "import mmap\nfile = open('/job/x', 'w+b')\nfile.truncate(4096)\n"
    "page = mmap.mmap(file.fileno(), 4096)\nfile.close()\n",
    "a pipe": "import os\nends = os.pipe()\n",
    "a socket": "import socket\nends = socket.socketpair()\n",
    "a file to write": "import os\nfile = os.open('/job/left', os.O_CREAT | os.O_RDWR)\n",
    "a file without a name": "import os\nfile = open('/job/left', 'w')\nos.unlink('/job/left')\n",
    "a file to read, whose place all share": "file = open('/py/lib/python3.11/os.py')\n",
    "memory of multiprocessing": "import multiprocessing\nseen = multiprocessing.Value('i', 0, lock=False)\n",
}


@pytest.mark.parametrize("way", SHARED)
def test_code_that_holds_what_its_segments_would_share_fails_when_it_is_loaded(best: Host, way: str) -> None:
    """What a fork does not copy would carry traces from segment to segment: none could be replayed alone."""
    code = SHARED[way].replace("python3.11", f"python{best.image.python}")
    outcome = best.run(make_series(Kind.MAP, code + "def f(item):\n    return item\n", [1, 2, 3], 0, 3, "f"))
    assert [one.cause for one in outcome.segments] == [Cause.PROGRAM]
    assert outcome.segments[0].error.startswith("SharedByAll: when it was loaded the code opened ")
    assert best.run(make_task(code + "result = 1")).value == 1, "a run has one segment"


def test_what_shares_nothing_may_be_opened_when_code_is_loaded(best: Host) -> None:
    code = "import mmap, threading, tempfile, random, asyncio, sqlite3, ssl, subprocess\nimport numpy\n"
    code += "quiet = open('/dev/null', 'w')\nchance = open('/dev/urandom', 'rb')\nlock = threading.Lock()\n"
    code += "own = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    code += "with open('/job/note', 'w') as file:\n    file.write('x')\n"
    code += "def f(item):\n    own[0] += 1\n    return own[0]\n"
    assert best.run(make_series(Kind.MAP, code, [1, 2, 3], 0, 3, "f")).values == [1, 1, 1]


def test_the_first_segment_finds_no_more_files_than_the_others(best: Host) -> None:
    code = "import os\nopen('/job/left', 'w').close()\nopen('/dev/shm/left', 'w').close()\n"
    code += "def f(item):\n    return [os.listdir('/job'), os.listdir('/dev/shm')]\n"
    assert best.run(make_series(Kind.MAP, code, [1, 2], 0, 2, "f")).values == [[[], []]] * 2


def test_map_takes_its_range_and_ends_at_a_failure(host: Host) -> None:
    outcome = host.run(make_series(Kind.MAP, bodies.double, [1, 2, 3, 4], 1, 2))
    assert [(one.index, values.unpack(one.output)) for one in outcome.segments] == [(1, 4), (2, 6)]
    assert outcome.segments[0].input_digest == hashlib.sha256(values.pack(2)).digest()
    failed = host.run(make_series(Kind.MAP, bodies.double, [1, 13, 3], 0, 3))
    assert [one.cause for one in failed.segments] == [Cause.OK, Cause.PROGRAM]
    assert failed.cause == Cause.PROGRAM


def test_train_chains_outputs_to_inputs(host: Host) -> None:
    outcome = host.run(make_series(Kind.TRAIN, bodies.step, [100], 5, 3))
    assert outcome.values == [[100, 5], [100, 5, 6], [100, 5, 6, 7]]
    for before, after in zip(outcome.segments, outcome.segments[1:], strict=False):
        assert after.input_digest == hashlib.sha256(before.output).digest()


def test_outputs_are_counted(best: Host) -> None:
    task = make_series(Kind.MAP, bodies.double, [1, 2, 3], 0, 3)
    limits = msgspec.structs.replace(task.limits, output_count=2)
    outcome = best.run(msgspec.structs.replace(task, limits=limits))
    assert [one.cause for one in outcome.segments] == [Cause.OK, Cause.OK, Cause.OUTPUT]
    assert outcome.cause == Cause.OUTPUT


def test_limits_of_time_hold_per_segment(best: Host) -> None:
    def work(item: int) -> int:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return item

    task = make_series(Kind.MAP, work, [1, 2, 3], 0, 3)
    limits = msgspec.structs.replace(task.limits, cpu_ms=800)
    outcome = best.run(msgspec.structs.replace(task, limits=limits))
    assert outcome.cause == Cause.OK, outcome.events
    assert outcome.usage.cpu_ms > 900


FORGERIES = {
    "a result of its own": wire.FRAME.pack(wire.OUTPUT, 1) + b"\x07",
    "the end of another segment": wire.FRAME.pack(wire.DONE, 9) + wire.OUTCOME.pack(9, 0, 0),
    "a giant frame": wire.FRAME.pack(wire.OUTPUT, 2**32 - 1),
    "an unknown frame": struct.pack(">BI", 99, 0),
    "noise": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_frames_stay_the_jobs_own_harm(name: str, host: Host) -> None:
    outcome = host.run(make_task(bodies.forge_frames, FORGERIES[name]))
    # Its own result pipe is spoilt too, which ends in `program`; only a job of our own kernel user reaches the frames.
    assert outcome.cause in (Cause.OK, Cause.OUTPUT, Cause.PROGRAM), outcome.events
    if host.who == "user" and name != "a result of its own":
        assert outcome.cause == Cause.OUTPUT
        assert "meddled with the result stream" in outcome.ended.detail
    assert [one.index for one in outcome.segments] == [0]


def test_large_values_pass(best: Host) -> None:
    limits = limited(output_bytes=40 * MIB, memory_bytes=512 * MIB)
    array = numpy.arange(4 * MIB, dtype="<f8")
    assert numpy.array_equal(best.run(make_task("result = args[0]", array, limits=limits)).value, array)


def test_libraries_a_job_may_expect(best: Host) -> None:
    source = """
import ctypes, lzma, multiprocessing, sqlite3, ssl, threading, tempfile
with multiprocessing.Pool(2) as pool:
    squares = pool.map(abs, [-1, -2])
with tempfile.TemporaryFile() as file:
    file.write(b"x")
thread = threading.Thread(target=squares.append, args=(3,))
thread.start(); thread.join()
result = [squares, sqlite3.connect(":memory:").execute("select 1").fetchone(), len(lzma.compress(b"x" * 99)) > 0]
"""
    assert best.run(make_task(source)).value == [[1, 2, 3], (1,), True]
