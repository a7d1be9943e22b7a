"""Process 1 of the sandbox: starts the runner, which takes the task and sets its limits; reaps; says how it ended.

It never runs a line of the job, and as process 1 of its namespace no job can signal it. When it leaves, the kernel
kills all that is left.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from provider.sandbox.inside import wire
from provider.sandbox.inside.forks import fork_bare, import_withheld
from provider.sandbox.inside.given import is_taken, take_over
from provider.sandbox.inside.runner import Runner

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main() -> None:
    """Entry point: `argv` names the descriptors of task, frames and the nameless memory that inputs go to, then the
    modules that are loaded before the task comes.
    """
    source, sink, memory = map(int, sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would make process 1 killable by SIGINT
    os.environ.pop("LD_BIND_NOW", None)
    for name in sys.argv[4:]:
        import_withheld(name)
    alone = os.getpid() == 1
    pid = fork_bare()  # ahead of the task, which need not wait for it
    if pid == 0:
        _be_runner(source, sink, memory, alone=alone)
    os.close(source)
    ended = _wait_for(pid)
    if not is_taken(memory):
        os._exit(1)  # no line of the job has run: whatever went wrong was not its doing
    try:
        wire.write_all(sink, wire.frame(wire.CLOSED, wire.CLOSING.pack(*wire_status(ended))))
    except OSError:
        pass  # the job, whose loading shares this stream, made it non-blocking and full: our leaving says as much
    os._exit(0)


def _be_runner(source: int, sink: int, memory: int, *, alone: bool) -> NoReturn:
    """Says that it is ready, takes the task, sets the limits, and runs it."""
    try:
        os.write(source, wire.READY)
        file = wire.receive_file(source)
        task = wire.read_task(source)
    except (EOFError, OSError):
        os._exit(0)  # the host went away before it gave the task
    os.close(source)
    take_over(file, memory)
    _limit(task["rlimits"])
    Runner(task, sink, alone=alone).run(memory)


def _limit(rlimits: Any) -> None:
    """Limits are set in here, where the user namespace counts this sandbox alone (threats.md 1.3, trap 2)."""
    for name, soft, hard in rlimits:
        resource.setrlimit(getattr(resource, name), (soft, hard))


def _wait_for(pid: int) -> int:
    """Reaps whoever dies, until it is the runner."""
    while True:
        found, status = os.waitpid(-1, 0)
        if found == pid:
            return status


def wire_status(status: int) -> tuple[int, int]:
    """(outcome, number) of a wait status."""
    if os.WIFSIGNALED(status):
        return wire.SIGNALED, os.WTERMSIG(status)
    return (wire.EXITED, os.WEXITSTATUS(status)) if os.WEXITSTATUS(status) else (wire.OK, 0)
