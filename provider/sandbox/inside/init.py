"""Process 1 of the sandbox: takes the task, sets the limits, starts the runner, reaps, says how the runner ended.

It never runs a line of the job, and as process 1 of its namespace no job can signal it. When it leaves, the kernel
kills all that is left.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from provider.sandbox.inside import runner, wire

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Entry point: `argv[1]` is the descriptor of the task, `argv[2]` of the frames, `argv[3]` what the code is."""
    source, sink = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would make process 1 killable by SIGINT
    if sys.argv[3] == "function":
        import cloudpickle  # noqa: F401  # 25 ms, most of which pass before the task comes
    try:
        task = wire.read_task(source)
    except EOFError:
        os._exit(0)  # the host went away before it gave the task
    os.close(source)
    _limit(task["rlimits"])
    alone = os.getpid() == 1
    pid = os.fork()
    if pid == 0:
        runner.run(task, sink, alone=alone)
    ended = _wait_for(pid)
    try:
        wire.send(sink, wire.CLOSED, wire.CLOSING.pack(*wire_status(ended)))
    except OSError:
        pass  # the job, whose loading shares this stream, made it non-blocking and full: our leaving says as much
    os._exit(0)


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
