"""Loads the job's code once, then forks a child per segment, so that no segment sees what another left behind
(design.md section 2).

Everything here may be taken over by the job: the host believes nothing it says but how its own wishes were met.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from types import CodeType, ModuleType

from broker.protocol import values
from provider.sandbox.inside import failures, wire
from provider.sandbox.inside.seeds import Seeder, derive
from provider.sandbox.inside.tidy import empty_folder

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from typing import Any, NoReturn

_LOADING = 2**64 - 1
"""Index under which the loading of the code is seeded: no segment has it."""
_SCRIPT = "/job/script.py"
_WRITABLE = ("/job", "/dev/shm")
_HEAD = struct.Struct(">BQ")
"""From segment to runner: outcome and length of what follows."""


def run(task: dict[str, Any], sink: int, *, alone: bool) -> NoReturn:
    """Runs all segments and never returns. `alone`: a process namespace is ours, so that whoever else is in it belongs
    to the job.
    """
    os.set_inheritable(sink, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are text files here; a line is seen when it is printed
    seeder = Seeder()
    sys.meta_path.insert(0, seeder)
    seeder.apply(derive(task["order_id"], _LOADING, task["seed"]))
    first, last = task["first"], task["first"] + task["count"] - 1
    try:
        program = _load(task)
        inputs: Any = values.split(task["inputs"]) if task["kind"] == "map" else task["inputs"]
    except BaseException as error:  # noqa: BLE001  # whatever the job's code raises is its result
        _refuse(sink, first, error)
    for index in range(first, last + 1):
        given = inputs[index] if task["kind"] == "map" else inputs
        wire.send(sink, wire.BEGIN, wire.INDEX.pack(index))
        outcome, number, output = _run_segment(task, program, index, given, sink, seeder, alone)
        wire.send(sink, wire.DONE, wire.OUTCOME.pack(index, outcome, number))
        if outcome != wire.OK:
            break
        inputs = output if task["kind"] == "train" else inputs
        if index != last:
            for folder in _WRITABLE:
                empty_folder(folder)
    os._exit(0)


def _load(task: dict[str, Any]) -> Any:
    """The function, or the compiled script. This runs code of the job: it is why the host does not do it."""
    if task["entry"] == "script":
        return compile(failures.remember_source(_SCRIPT, task["code"]), _SCRIPT, "exec", dont_inherit=True)
    from _pickle import loads  # the C half alone: the whole of pickle costs 5 ms more

    return loads(task["code"])


def _refuse(sink: int, index: int, error: BaseException) -> NoReturn:
    """The code could not be loaded: the first segment fails with it."""
    outcome, text = failures.describe(error)
    wire.send(sink, wire.BEGIN, wire.INDEX.pack(index))
    wire.send(sink, wire.ERROR, text)
    wire.send(sink, wire.DONE, wire.OUTCOME.pack(index, outcome, 0))
    os._exit(0)


def _run_segment(
    task: dict[str, Any], program: Any, index: int, given: bytes, sink: int, seeder: Seeder, alone: bool
) -> tuple[int, int, bytes]:
    """Forks the child of a segment and passes on what it sends. Returns outcome, signal or status, and output."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.close(sink)
        seeder.apply(derive(task["order_id"], index, task["seed"]))
        _be_segment(task, program, index, given, writer)
    os.close(writer)
    outcome, output = _pass_on(pid, reader, sink, alone)
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    _end_others(alone)
    if os.WIFSIGNALED(status):
        return wire.SIGNALED, os.WTERMSIG(status), output
    if outcome is None:
        return wire.EXITED, os.WEXITSTATUS(status), output
    return outcome, 0, output


def _pass_on(pid: int, reader: int, sink: int, alone: bool) -> tuple[int | None, bytes]:
    """Reads the child's message and sends it on as frames. A grandchild that keeps the pipe open is killed when the
    child dies.
    """

    def end_others(*_: object) -> None:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            _end_others(alone, wait=False)

    signal.signal(signal.SIGCHLD, end_others)
    try:
        end_others()
        outcome, size = _HEAD.unpack(wire.read_exactly(reader, _HEAD.size))
        kept = bytearray()
        while len(kept) < size:
            part = wire.read_exactly(reader, min(size - len(kept), wire.MAX_PAYLOAD))
            wire.send(sink, wire.OUTPUT if outcome == wire.OK else wire.ERROR, part)
            kept += part
    except (EOFError, struct.error):
        return None, b""
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return outcome, bytes(kept)


def _end_others(alone: bool, *, wait: bool = True) -> None:
    """Kills what a segment left running, everything but process 1 and this one, and waits until it is gone."""
    while alone:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        if not wait:
            return
        time.sleep(0.001)


def _be_segment(task: dict[str, Any], program: Any, index: int, given: bytes, writer: int) -> NoReturn:
    """The child: runs the segment, sends its output or its error, leaves."""
    try:
        message = values.pack(_call(task, program, index, values.unpack(given)))
        outcome = wire.OK
    except BaseException as error:  # noqa: BLE001  # whatever the job's code raises is its result
        outcome, message = failures.describe(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the job closed or replaced it
    wire.write_all(writer, _HEAD.pack(outcome, len(message)))
    wire.write_all(writer, message)
    os._exit(0)


def _call(task: dict[str, Any], program: Any, index: int, given: Any) -> object:
    if task["kind"] == "map":
        return program(given)
    if task["kind"] == "train":
        return program(given, index)
    args, kwargs = given
    return _run_script(program, args, kwargs) if isinstance(program, CodeType) else program(*args, **kwargs)


def _run_script(program: CodeType, args: Any, kwargs: Any) -> object:
    """Runs a script as `__main__` and takes its global `result`. It finds `args` and `inputs` (the keyword arguments)
    as globals, and the texts of `args` in `sys.argv`.
    """
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=_SCRIPT, __builtins__=__builtins__, args=tuple(args), inputs=dict(kwargs), result=None
    )
    sys.modules["__main__"] = main
    sys.argv = [_SCRIPT, *map(str, args)]
    try:
        exec(program, main.__dict__)  # noqa: S102  # running the job's script is what this process is for
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    return main.__dict__.get("result")
