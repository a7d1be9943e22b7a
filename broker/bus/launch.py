"""Started as a program of its own: become another program that dies with the one that started this.

`python -I -S launch.py PARENT USER GROUP PROGRAM [ARGUMENT …]`: gives up root for the numbers USER and GROUP (-1: stays
who it is), asks the kernel (Linux) for SIGKILL when the parent ends, makes sure that this parent is still there, then
turns into the program. In this order, since a change of user takes the kernel's promise back. Only the standard
library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return."""
    parent, user, group = (int(number) for number in arguments[:3])
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(arguments[3], arguments[3:])


if __name__ == "__main__":
    main(sys.argv[1:])
