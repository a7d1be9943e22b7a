"""Loads the job's code once, then forks a child per segment, so that no segment sees what another left behind
(design.md section 2).

Everything here may be taken over by the job: the host believes nothing it says but how its own wishes were met. A fork
costs what is touched after it: each page of Python that runner or child write to, and each that the child reads of a
file, is a fault of one to three microseconds, and an unwary child has four hundred. So the path of a small segment is
short: little is called in it, and that was called before.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import struct
import sys
import time
from functools import partial

import msgpack

from broker.protocol import values
from provider.sandbox.inside import failures, wire
from provider.sandbox.inside.forks import fork_bare, register_withheld
from provider.sandbox.inside.given import make_state, open_inputs, unpack
from provider.sandbox.inside.program import Program
from provider.sandbox.inside.seeds import LOADING, Seeder
from provider.sandbox.inside.sharing import check_unshared, list_shared
from provider.sandbox.inside.tidy import empty_folder

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

    from provider.sandbox.inside.program import Call

_HEAD = struct.Struct(">BQ")
"""From segment to runner: outcome and length of what follows."""
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_SMALL = 1 << 16
"""Bytes of a message that a pipe takes whole: read at once and sent on as one write."""
_EARLY, _AT_ONCE = 1 << 10, 64
"""Bytes of an item that is unpacked before its segment begins, and how many such items are."""
_REHEARSALS = 16
"""Python learns in eight calls of a function."""
_PATIENCE_MS = 20
"""How long a segment's message is waited for without looking after the segment itself."""


class Runner:
    """Runs the segments of one task. `alone`: a process namespace is ours, so that whoever else is in it belongs to the
    job.
    """

    def __init__(self, task: dict[str, Any], sink: int, *, alone: bool) -> None:
        self._task = task
        self._sink = sink
        self._alone = alone
        self._chained = task["kind"] == "train"
        self._seeder = Seeder(task["order_id"], task["seed"])
        self._pipe = select.poll()
        self._reader = -1
        self._begun = self._watching = False
        self._state: Any = None
        self._packer = msgpack.Packer(strict_types=True, use_bin_type=True)
        self._collects = gc.isenabled()

    def run(self, memory: int) -> NoReturn:
        """Runs all segments and never returns. `memory` is the descriptor of the sealed inputs."""
        os.set_inheritable(self._sink, False)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are text files here; a line is seen when it is printed
        sys.meta_path.insert(0, self._seeder)
        task, first = self._task, self._task["first"]
        self._seeder.move_to(LOADING)
        try:
            inputs = open_inputs(memory, task)
            program = self._load()
        except BaseException as error:  # noqa: BLE001  # whatever the job's code raises is its result
            outcome, text = failures.describe(error)
            self._tell(first, outcome, 0, text)
            os._exit(0)
        self._settle()
        last = first + task["count"] - 1
        for index, given in enumerate(self._unpack(inputs), first):
            outcome = self._run_segment(program, index, given)
            if outcome != wire.OK or index == last:
                break
            _tidy(program)
        os._exit(0)

    def _load(self) -> Program:
        """The program; of a `map` or `train` one that holds and leaves nothing that its segments would share."""
        if self._task["kind"] == "run":
            return Program(self._task)
        before = list_shared()
        program = Program(self._task)
        check_unshared(before)
        _tidy(program)
        return program

    def _unpack(self, inputs: Any) -> Iterator[Any]:
        """What each segment is given: a value, or a function that makes it. Small items are unpacked some at a time,
        once for all, since a child would copy each page that this takes.
        """
        if self._task["kind"] != "map":
            self._state = inputs
            while True:
                yield partial(unpack, self._state)
        for start in range(0, len(inputs), _AT_ONCE):
            yield from [_unpack_early(item) for item in inputs[start : start + _AT_ONCE]]

    def _settle(self) -> None:
        """What is loaded by now stays as it is: the collector, here and in the children, leaves it alone, since
        counting its references would copy every page.
        """
        threading = sys.modules.get("threading")
        if threading is not None and threading.active_count() > 1:
            register_withheld()
        self._collects = gc.isenabled()
        if self._task["count"] > _REHEARSALS:
            self._rehearse()
        gc.disable()
        gc.freeze()

    def _run_segment(self, program: Program, index: int, given: Any) -> int:
        """Forks the child of a segment, sends on what it says, sees that nothing of it is left. Returns the outcome."""
        reader, writer = os.pipe()
        if reader != self._reader:
            self._reader = reader
            self._pipe = select.poll()
            self._pipe.register(reader, select.POLLIN)
        pid = fork_bare()
        if pid == 0:
            os.close(reader)
            os.close(self._sink)
            self._be_segment(program.call, index, given, writer)
            os._exit(0)
        os.close(writer)
        if not self._pipe.poll(_PATIENCE_MS):
            self._watch(pid)
        outcome, message = self._read(pid, reader, index)
        if self._watching:
            self._watching = False
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # before the child is reaped, else it is looked for in vain
        status = os.waitpid(pid, 0)[1]
        _end_others(self._alone)
        os.close(reader)
        number = 0
        if os.WIFSIGNALED(status):
            outcome, number = wire.SIGNALED, os.WTERMSIG(status)
        elif outcome is None:
            outcome, number = wire.EXITED, os.WEXITSTATUS(status)
        self._tell(index, outcome, number, message)
        return outcome

    def _watch(self, pid: int) -> None:
        """From now on, whatever keeps the segment's pipe open is killed once the segment itself is dead."""
        self._watching = True

        def end_others(*_: object) -> None:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                _end_others(self._alone, wait=False)

        signal.signal(signal.SIGCHLD, end_others)
        end_others()

    def _read(self, pid: int, reader: int, index: int) -> tuple[int | None, bytes]:
        """(outcome, a message that is still to be sent on). No outcome where the message broke off."""
        try:
            first = os.read(reader, _SMALL)
            outcome, size = _HEAD.unpack_from(first)
            message = first[_HEAD.size :]
            if len(message) < size and not self._watching:
                self._watch(pid)
            if size > _SMALL:
                self._forward(reader, index, outcome, message, size)
                return outcome, b""
            if len(message) < size:
                message += wire.read_exactly(reader, size - len(message))
        except (EOFError, struct.error):
            return None, b""
        if self._chained:
            self._state = message
        return outcome, message

    def _forward(self, reader: int, index: int, outcome: int, first: bytes, size: int) -> None:
        """Sends a long message on as it comes. What the next segment begins with is kept, once."""
        wire.write_all(self._sink, wire.frame(wire.BEGIN, wire.INDEX.pack(index)))
        self._begun = True
        kind = wire.OUTPUT if outcome == wire.OK else wire.ERROR
        limit = self._task["output_bytes"]
        kept = make_state(size) if self._chained and (limit is None or size <= limit) else None
        buffer = memoryview(bytearray(wire.MAX_PAYLOAD))
        done = 0
        while done < size:
            room = min(size - done, wire.MAX_PAYLOAD)
            part = buffer[:room] if kept is None else kept[done : done + room]
            have = min(len(first), room) if not done else 0
            part[:have] = first[:have]
            wire.read_into(reader, part[have:])
            wire.send(self._sink, kind, part)
            done += room
        self._state = kept

    def _tell(self, index: int, outcome: int, number: int, message: bytes) -> None:
        """The frames of a whole segment, or what is missing of them, as one write."""
        kind = wire.OUTPUT if outcome == wire.OK else wire.ERROR
        start = b"" if self._begun else wire.frame(wire.BEGIN, wire.INDEX.pack(index))
        body = wire.frame(kind, message) if message else b""
        wire.write_all(self._sink, start + body + wire.frame(wire.DONE, wire.OUTCOME.pack(index, outcome, number)))
        self._begun = False

    def _pack(self, value: object) -> Sequence[bytes | memoryview]:
        """The parts of a value. What has one form only is packed without the walk that looks for what has none."""
        if type(value) in _PLAIN:
            try:
                return [self._packer.pack(value)]
            except (ValueError, OverflowError):
                self._packer.reset()  # a number or text out of the ordinary
        return values.pack_parts(value)

    def _be_segment(self, call: Call, index: int, given: Any, writer: int) -> None:
        """The child: runs the segment, sends its output or its error."""
        if self._collects:
            gc.enable()
        try:
            self._seeder.move_to(index)
            message = self._pack(call(given() if type(given) is partial else given, index))
            outcome = wire.OK
        except BaseException as error:  # noqa: BLE001  # whatever the job's code raises is its result
            outcome, text = failures.describe(error)
            message = [text]
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the job closed or replaced it
        if len(message) == 1 and len(message[0]) <= _SMALL:
            wire.write_all(writer, _HEAD.pack(outcome, len(message[0])) + message[0])
        else:
            wire.write_parts(writer, [_HEAD.pack(outcome, values.measure(message)), *message])

    def _rehearse(self) -> None:
        """Does what each child will do, without the job: what Python learns by it, children need not learn each by
        itself, on pages that they would have to copy.
        """
        sink = os.open("/dev/null", os.O_WRONLY)
        for _ in range(_REHEARSALS):
            self._be_segment(lambda given, index: given, LOADING, None, sink)
        os.close(sink)


def _tidy(program: Program) -> None:
    """Every segment, the first too, finds the folders as they were before the code was loaded."""
    if os.listdir("/job"):
        empty_folder("/job", keep="code" if program.folder is not None else "")
    if os.listdir("/dev/shm"):
        empty_folder("/dev/shm")
    program.restore()


def _unpack_early(item: memoryview) -> Any:
    """The value of a small item; else, and where it is broken, a function that unpacks it."""
    late = partial(unpack, item)
    if len(item) > _EARLY:
        return late
    try:
        value = unpack(item)
    except values.BadValue:
        return late
    return value


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
