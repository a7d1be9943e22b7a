"""Functions, scripts and folders: how each is loaded and called, what a folder gives back, and that nothing one segment
does is there for the next.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.protocol import folders, reporting
from broker.protocol.jobs import Entry
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.inside.folder import CodeFolder, collect_outputs
from provider.sandbox.spec import Task
from tests.provider.sandbox.world import LIMITS, MIB, Host, make_folder, make_series, make_task

SCRIPT = """
print("loaded as", __name__)
calls = 0
def double(item):
    global calls
    calls += 1
    return [item * 2, calls]
def step(state, index):
    return state + [index]
number = 5
class Left(Exception): pass
"""
FOLDER = {
    "main.py": b"from helpers.tools import twice\nimport data\n"
    b"def double(item):\n    return [twice(item), data.NAME]\n",
    "helpers/__init__.py": b"",
    "helpers/tools.py": b"def twice(item):\n    return item * 2\n",
    "data.py": b"NAME = open('table.txt').read()\n",
    "table.txt": b"from a file",
}


def make_folder_series(files: dict[str, bytes], items: list[object], function: str) -> Task:
    task = make_series(Kind.MAP, "", items, 0, len(items), function)
    return msgspec.structs.replace(task, entry=Entry.FOLDER, code=folders.pack_folder(files))


def test_a_script_is_loaded_once_and_its_function_called_for_each_item(host: Host) -> None:
    outcome = host.run(make_series(Kind.MAP, SCRIPT, [1, 2, 3], 0, 3, "double"))
    assert outcome.values == [[2, 1], [4, 1], [6, 1]], outcome.events
    assert outcome.log() == b"loaded as script\n", "a module, and not `__main__`"


def test_a_script_trains(best: Host) -> None:
    assert best.run(make_series(Kind.TRAIN, SCRIPT, [9], 4, 2, "step")).values == [[9, 4], [9, 4, 5]]


@pytest.mark.parametrize(
    ("name", "says"),
    [("halve", "script.py defines no `halve`"), ("number", "can't be called by `number`")],
)
def test_a_function_that_is_not_there_is_named(name: str, says: str, host: Host) -> None:
    outcome = host.run(make_series(Kind.MAP, SCRIPT, [1, 2], 0, 2, name))
    assert [one.cause for one in outcome.segments] == [Cause.PROGRAM]
    assert says in outcome.segments[0].error


def test_a_folder_imports_its_own_modules_and_reads_its_own_files(host: Host) -> None:
    outcome = host.run(make_folder_series(FOLDER, [1, 2], "double"))
    assert outcome.values == [[2, "from a file"], [4, "from a file"]], outcome.events


def test_a_folder_runs_its_script(host: Host) -> None:
    script = b"""
import os, sys, data
result = [__name__, __file__, os.getcwd(), sys.argv, args[0], inputs["b"], data.NAME,
          os.access("main.py", os.W_OK), os.access(".", os.W_OK)]
"""
    outcome = host.run(make_folder({**FOLDER, "main.py": script}, 1, b=2))
    where = ["__main__", "/job/code/main.py", "/job/code", ["/job/code/main.py", "1"]]
    assert outcome.value == [*where, 1, 2, "from a file", False, False]


def test_errors_of_a_folder_quote_its_lines(best: Host) -> None:
    files = {"main.py": b"import other\nother.fail()\n", "other.py": b"def fail():\n    return 1 / 0\n"}
    error = best.run(make_folder(files)).segments[0].error
    assert 'File "/job/code/other.py", line 2, in fail' in error
    assert "return 1 / 0" in error


def test_a_folder_larger_than_what_a_job_may_write_is_there(best: Host) -> None:
    files = {"main.py": b"import os\nresult = os.path.getsize('large')\n", "large": bytes(LIMITS.tmp_bytes + MIB)}
    limits = msgspec.structs.replace(LIMITS, memory_bytes=256 * MIB)
    assert best.run(make_folder(files, limits=limits)).value == LIMITS.tmp_bytes + MIB


# ---- what a run gives back ----

WRITES = """
import os
assert os.listdir("/job/outputs") == []
os.makedirs("/job/outputs/a/b")
open("/job/outputs/one.txt", "w").write("1")
open("/job/outputs/a/b/two.bin", "wb").write(bytes(range(256)))
"""


def test_files_of_a_folder_come_back(host: Host) -> None:
    outcome = host.run(make_folder({"main.py": WRITES.encode() + b"result = 5\n"}))
    assert outcome.value == {"result": 5, "files": {"one.txt": b"1", "a/b/two.bin": bytes(range(256))}}


@pytest.mark.parametrize("source", ["result = 5", "import os\nos.rmdir('/job/outputs')\nresult = 5"])
def test_without_files_the_value_stands_alone(source: str, best: Host) -> None:
    assert best.run(make_folder({"main.py": source.encode()})).value == 5


def test_a_script_alone_gives_no_files_back(best: Host) -> None:
    assert best.run(make_task("import os\nos.mkdir('/job/outputs')\n" + WRITES + "result = 5\n")).value == 5


REFUSED = {
    "a link out": ("os.symlink('/py/bin', '/job/outputs/link')", "neither a file nor a folder"),
    "a link to a file": ("os.symlink('/job/code/main.py', '/job/outputs/link')", "neither a file nor a folder"),
    "a socket": ("import socket; socket.socket(1).bind('/job/outputs/socket')", "neither a file nor a folder"),
    "a hidden file": ("open('/job/outputs/.profile', 'w')", "not the same everywhere"),
    "a line feed": ("open('/job/outputs/a\\\\nb', 'w')", "not the same everywhere"),
    "an escape": ("open('/job/outputs/\\\\x1b[31m', 'w')", "not the same everywhere"),
    "case alone": ("open('/job/outputs/a', 'w'); open('/job/outputs/A', 'w')", "case alone"),
    "too many": ("[open(f'/job/outputs/{i}', 'w').close() for i in range(10_000)]", "more than 4096 files"),
    "too large": ("open('/job/outputs/a', 'wb').truncate(5 << 20)", "more than allowed"),
    "too deep": ("os.makedirs('/job/outputs/' + 'a/' * 40)", "deeper than 16 folders"),
    "a folder that is a link": ("os.rmdir('/job/outputs'); os.symlink('/py', '/job/outputs')", "is no folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_given_back_fails_the_run(name: str, host: Host) -> None:
    act, says = REFUSED[name]
    source = f"import os\n{act}\n"
    outcome = host.run(make_folder({"main.py": source.encode().replace(b"\\\\", b"\\")}))
    assert outcome.cause == Cause.PROGRAM, outcome.events
    assert says in outcome.segments[0].error
    assert outcome.segments[0].output == b""


def test_outputs_are_read_as_they_are(tmp_path: Path) -> None:
    assert collect_outputs(100, str(tmp_path / "nothing")) == {}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 60)
    (tmp_path / "other").write_bytes(b"y" * 40)
    assert collect_outputs(100, str(tmp_path)) == {"a/file": b"x" * 60, "other": b"y" * 40}
    with pytest.raises(ValueError, match="100 bytes are more"):
        collect_outputs(99, str(tmp_path))
    assert len(collect_outputs(None, str(tmp_path))) == 2


# ---- nothing stays ----

MEDDLE = """
import os, pathlib, sys
state = []
def meddle(item):
    folder = pathlib.Path("/job/code")
    if not folder.is_dir():
        folder = pathlib.Path("/job")
    seen = [list(state), getattr(sys, "left", None), os.environ.get("LEFT"), sorted(os.listdir("/job")),
            sorted(os.listdir("/dev/shm")), sorted(os.listdir("/tmp")), sorted(os.listdir(folder)), os.getcwd(),
            sum(name.isdigit() for name in os.listdir("/proc")) if os.path.isdir("/proc/self") else 3]
    state.append(item)
    sys.left = os.environ["LEFT"] = "left"
    for where in ("/job", "/tmp", "/dev/shm"):
        open(f"{where}/left", "w").write("left")
    os.makedirs("/job/outputs/left")
    if os.fork() == 0:
        os.setsid()
        import time
        time.sleep(60)
    os.chdir("/")
    if os.path.isdir("/job/code"):
        for path in ("/job/code", "/job/code/helper.py"):
            os.chmod(path, 0o700)
        %s
    return seen
"""
SPOILS = {
    "adds": "open('/job/code/added.py', 'w')",
    "rewrites": "open('/job/code/helper.py', 'w').write('x = 6')",
    "removes": "os.unlink('/job/code/helper.py')",
    "moves away": "os.rename('/job/code', '/job/gone')",
    "puts a link": "os.rename('/job/code', '/job/gone'); os.symlink('/py', '/job/code')",
    "puts a file": "os.rename('/job/code', '/job/gone'); open('/job/code', 'w')",
    "writes by mapping": "import mmap; mmap.mmap(os.open('/job/code/helper.py', 2), 0)[0:1] = b'y'",
}


def test_a_script_leaves_nothing_to_its_next_segment(host: Host) -> None:
    outcome = host.run(make_series(Kind.MAP, MEDDLE % "pass", [1, 2, 3], 0, 3, "meddle"))
    fresh: list[Any] = [[], None, None, [], [], [], [], "/job", 3]
    assert outcome.values == [fresh] * 3, outcome.events


@pytest.mark.parametrize("how", SPOILS)
def test_a_folder_is_as_it_was_sent_for_each_segment(how: str, best: Host) -> None:
    files = {"main.py": (MEDDLE % SPOILS[how]).encode(), "helper.py": b"x = 5"}
    files["main.py"] += b"\ndef work(item):\n    return [open('/job/code/helper.py').read(), meddle(item)]\n"
    outcome = best.run(make_folder_series(files, [1, 2, 3], "work"))
    fresh: list[Any] = [[], None, None, ["code"], [], ["code"], ["helper.py", "main.py"], "/job/code", 3]
    assert outcome.values == [["x = 5", fresh]] * 3, outcome.events


def test_a_folder_is_written_read_only_and_put_right(tmp_path: Path) -> None:
    top = tmp_path / "code"
    code = CodeFolder(folders.pack_folder({"main.py": b"1", "a/b/c": b"2"}), str(top))
    assert {stat.S_IMODE(path.stat().st_mode) for path in top.rglob("*") if path.is_file()} == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (top, top / "a", top / "a/b")} == {0o555}
    code.restore()
    before = (top / "main.py").stat().st_ino
    assert (top / "main.py").stat().st_ino == before, "what is whole is left alone"
    os.chmod(top / "a/b/c", 0o600)
    (top / "a/b/c").write_bytes(b"3")
    code.restore()
    assert (top / "a/b/c").read_bytes() == b"2"
    os.chmod(top, 0o700)


# ---- metrics ----


@pytest.mark.parametrize("where", ["broker.protocol.reporting", "requester"])
def test_reports_name_their_segment(where: str, host: Host) -> None:
    source = f"from {where} import report\ndef work(item):\n    report(loss=item / 2)\n"
    outcome = host.run(make_series(Kind.MAP, source, [1, 2, 3], 0, 3, "work"))
    reports = [reporting.parse_line(line) for line in outcome.log().splitlines()]
    assert reports == [reporting.Report(index, {"loss": (index + 1) / 2}) for index in range(3)], outcome.events


def test_a_module_that_is_imported_later_knows_its_segment(best: Host) -> None:
    source = "def work(item):\n    from broker.protocol.reporting import report\n    report(loss=item)\n"
    outcome = best.run(make_series(Kind.MAP, source, [7, 8], 0, 2, "work"))
    reports = [reporting.parse_line(line) for line in outcome.log().splitlines()]
    assert [report and report.segment for report in reports] == [0, 1]


def test_a_flood_of_reports_ends_as_a_flood_of_output(host: Host) -> None:
    source = "from broker.protocol.reporting import report\nwhile True:\n    report(text='x' * 250)\n"
    outcome = host.run(make_task(source))
    assert outcome.cause == Cause.LOG, outcome.events
    assert len(outcome.log()) <= LIMITS.log_bytes


def test_the_log_of_many_short_segments_is_not_taken_for_that_of_one(best: Host) -> None:
    """Each stays within its cap; together they pass it while the host rests."""
    task = make_series(Kind.MAP, lambda item: print("x" * item), [30_000] * 40, 0, 40)
    outcome = best.run(task)
    assert outcome.cause == Cause.OK, outcome.ended
    assert len(outcome.log()) == 40 * 30_001
    assert sum(one.usage.bytes_out for one in outcome.segments) == 40 * 30_002


# ---- forks of the job's own ----

FORKS = """
import logging, multiprocessing, os, threading
before = threading.Thread(target=threading.Event().wait, daemon=True)
def work(item):
    before.start()
    reader, writer = os.pipe()
    if os.fork() == 0:
        seen = [threading.active_count(), threading.main_thread() is threading.current_thread()]
        os.write(writer, repr(seen).encode())
        os._exit(0)
    os.wait()
    with multiprocessing.Pool(2) as pool:
        return [os.read(reader, 100).decode(), pool.map(abs, [-1, -2])]
"""


def test_a_job_may_fork_with_threads(host: Host) -> None:
    """What `threading` does after a fork is kept from the runner's forks, not from the job's."""

    def work(item: int) -> object:
        import multiprocessing
        import threading

        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, f"{threading.active_count()} {threading.current_thread().name}".encode())
            os._exit(0)
        os.wait()
        with multiprocessing.Pool(2) as pool:
            return [os.read(reader, 100).decode(), pool.map(abs, [-1, -2])]

    limits = msgspec.structs.replace(LIMITS, processes=32)
    task = msgspec.structs.replace(make_series(Kind.MAP, work, [1, 2], 0, 2), limits=limits)
    assert host.run(task).values == [["1 MainThread", [1, 2]]] * 2
    script = make_series(Kind.MAP, FORKS, [1, 2], 0, 2, "work")
    outcome = host.run(msgspec.structs.replace(script, limits=limits))
    assert outcome.values == [["[1, True]", [1, 2]]] * 2, outcome.events
