"""What hostile jobs do. Each function travels into the sandbox by value and tells what it achieved."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
import time
from typing import Any

MIB = 1 << 20


def mem_bomb(target: int) -> int:
    """Fills memory up to `target` bytes, which the host can bear."""
    held: list[bytearray] = []
    while len(held) * 8 * MIB < target:
        held.append(bytearray(b"\1") * (8 * MIB))
    return len(held) * 8 * MIB


def fork_bomb(most: int) -> int:
    """Forks sleepers until it is refused; how many there are."""
    count = 0
    for _ in range(most):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            signal.alarm(30)
            signal.pause()
            os._exit(0)
        count += 1
    return count


def read_host_files(paths: list[str]) -> list[str]:
    """Those of `paths` that can be read, also by way of /proc."""
    found = []
    for path in paths:
        for prefix in ("", "/proc/self/root", "/proc/1/root", "/proc/1/cwd/..", "/proc/2/root"):
            try:
                with open(prefix + path, "rb") as file:
                    file.read(1)
                found.append(prefix + path)
            except OSError:
                continue
    return found


def tcp_udp_exfil(port: int) -> list[str]:
    """Ways by which bytes left."""
    left = []
    for name, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                with socket.socket(family, kind) as one:
                    one.settimeout(2)
                    one.connect((address, port))
                    one.send(b"secret")
                    left.append(f"{name} {address}")
            except OSError:
                continue
    return left


def kill_all(canary: int, everyone: bool) -> str:
    """Kills whatever it may."""
    for pid in [canary, *((-1,) if everyone else ())]:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    return "done"


def env_leak() -> str:
    """All environments and command lines in sight."""
    seen = [repr(sorted(os.environ.items()))]
    for pid in ("1", "2", "self"):
        for name in ("environ", "cmdline"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    seen.append(repr(file.read()))
            except OSError:
                continue
    return "\n".join(seen)


def daemon_outlive(seconds: int) -> str:
    """Leaves a daemon of the classic kind, which also holds on to the output."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.alarm(seconds)
            while True:
                signal.pause()
        os._exit(0)
    return "left"


def stdout_flood(size: int) -> int:
    """Writes to both streams, past Python's buffers."""
    written = 0
    while written < size:
        written += os.write(1 + written // 65536 % 2, b"x" * 65536)
    return written


def symlink_out(path: str) -> list[str]:
    """Leads to a file of the host by links; what came of it."""
    found = []
    for make in (os.symlink, os.link):
        target = f"/job/{make.__name__}"
        try:
            make(path, target)
            with open(target) as file:
                found.append(file.read())
        except OSError:
            continue
    return found


def namespaces() -> list[str]:
    """Namespaces it could make or enter."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = {
        "user": 0x10000000,
        "mount": 0x00020000,
        "pid": 0x20000000,
        "net": 0x40000000,
        "ipc": 0x08000000,
        "uts": 0x04000000,
    }
    made = []
    for name, flag in flags.items():
        if os.fork() == 0:
            os._exit(0 if libc.unshare(flag) == 0 else 1)
        if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
            made.append(f"unshare {name}")
    clone = 220 if os.uname().machine == "aarch64" else 56
    for name, flag in flags.items():
        pid = libc.syscall(clone, flag | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid > 0:
            os.waitpid(pid, 0)
            made.append(f"clone {name}")
    for kind in ("user", "mnt", "net"):
        try:
            handle = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
        except OSError:
            continue
        if libc.setns(handle, 0) == 0:
            made.append(f"setns {kind}")
    return made


# ---- ends of other kinds ----


def spin() -> None:
    """Uses CPU for ever."""
    while True:
        pass


def spin_in_children(count: int) -> None:
    """Uses CPU in several processes."""
    for _ in range(count):
        if os.fork() == 0:
            spin()
    time.sleep(1000)


def sleep_long() -> None:
    """Waits for ever, deaf to polite signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def send_much(size: int) -> bytes:
    """Returns that many bytes."""
    return bytes(size)


def die_by(number: int) -> None:
    """Ends by a signal."""
    signal.signal(number, signal.SIG_DFL) if number not in (9, 19) else None
    os.kill(os.getpid(), number)
    time.sleep(1000)


def call_x32() -> None:
    """Makes a system call by the x32 entry."""
    ctypes.CDLL(None).syscall(0x40000000 | 39)


def fail(text: str) -> None:
    """Raises."""
    raise ValueError(text)


def leave(status: int) -> None:
    """Leaves without a word."""
    os._exit(status)


def uncarried() -> object:
    """Returns what has no form as bytes."""
    return {"model": [1, 2, {3}]}


def forge_frames(data: bytes) -> None:
    """Writes its own frames into every descriptor that the harness has open."""
    for pid in ("1", "2", "self"):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                handle = os.open(f"/proc/{pid}/fd/{name}", os.O_WRONLY | os.O_NONBLOCK)
                os.write(handle, data)
            except OSError:
                continue
    time.sleep(0.2)


# ---- what a well-behaved job sees ----


def _read_link(name: str) -> str:
    """What a descriptor of ours leads to; nothing for one that is closed by now."""
    try:
        return os.readlink(f"/proc/self/fd/{name}").split(":")[0]
    except OSError:
        return ""


def look_around(modules: tuple[str, ...]) -> dict[str, Any]:
    """What there is, and which of these modules are loaded."""
    return {
        "version": sys.version,
        "environ": dict(os.environ),
        "root": sorted(os.listdir("/")),
        "dev": sorted(os.listdir("/dev")),
        "descriptors": sorted(filter(None, map(_read_link, os.listdir("/proc/self/fd")))),
        "pid": os.getpid(),
        "uid": os.getuid(),
        "modules": [name for name in modules if name in sys.modules],
        "status": dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line),
        "hostname": os.uname().nodename,
    }


def draw() -> list[Any]:
    """Chance of all kinds."""
    import numpy

    return [random.random(), float(numpy.random.rand()), hash("tally"), numpy.random.permutation(5)]


def meddle(item: int) -> list[Any]:
    """Tells what an earlier segment left, then leaves everything it can."""
    left: list[Any] = [getattr(sys, "left", None), os.environ.get("LEFT")]
    left += [sorted(os.listdir(folder)) for folder in ("/job", "/dev/shm", "/tmp")]
    left.append(sum(name.isdigit() for name in os.listdir("/proc")) if os.path.isdir("/proc/self") else 3)
    setattr(sys, "left", item)  # noqa: B010  # mypy knows no such attribute
    os.environ["LEFT"] = "1"
    os.makedirs("/job/a/b/c")
    os.symlink("/sp", "/job/link")
    os.mkdir("/job/locked")
    with open("/job/locked/file", "w") as file:
        file.write("x")
    os.chmod("/job/locked", 0)
    with open("/dev/shm/left", "w") as file:
        file.write("x")
    daemon_outlive(30)
    return left


def step(state: list[int], index: int) -> list[int]:
    """A chain that shows its order."""
    return [*state, index]


def double(item: int) -> int:
    """Twice its item; fails at 13."""
    if item == 13:
        raise ValueError("unlucky")
    return item * 2


def sleep_loud() -> None:
    """Starts sleepers, says so, waits for ever."""
    fork_bomb(8)
    print("ready", flush=True)
    sleep_long()
