"""The system call filter: an allow-list assembled into classic BPF.

Pure. Rules: threats.md 1.4. Numbers outside the table get EPERM where they have a meaning today and ENOSYS where they
have none; another architecture's entry (int 0x80, x32) kills the process. The program looks a number up by binary
search over ranges, since every instruction before the verdict is paid by each call. Not here: the numbers
(`syscalls.py`).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final

import msgspec

from provider.sandbox.syscalls import ABSENT, ALLOWED, KNOWN, MEMFD_CREATE

__all__ = ["ARCHITECTURES", "Instruction", "Rule", "assemble", "build_filter", "get_ranges"]

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH values of the kernel."""

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
EPERM: Final = 0x00050000 | 1
ENOSYS: Final = 0x00050000 | 38

_X32_BIT: Final = 0x40000000
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

_AF_UNIX: Final = 1
_CLONE_NEW: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python asks of files and pipes. Not TIOCSTI."""
_PERSONALITIES: Final = (0, 0xFFFFFFFF)
_ONESELF: Final = 0
"""Process 0 is the caller. The limits of another, such as process 1, would be a way to end it in the host's name."""


class Rule(msgspec.Struct, frozen=True):
    """A condition on the low half of one argument: one of `values` (any of its bits where `bits` is set) leads to
    `hit`, else to `miss`.
    """

    argument: int
    values: tuple[int, ...]
    hit: int
    miss: int
    bits: bool = False


Verdict = int | Rule
Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant."""

GUARDED: Final[dict[str, dict[str, Rule]]] = {
    "network": {
        "socket": Rule(0, (_AF_UNIX,), ALLOW, EPERM),
        "socketpair": Rule(0, (_AF_UNIX,), ALLOW, EPERM),
    },
    "namespaces": {"clone": Rule(0, (_CLONE_NEW,), EPERM, ALLOW, bits=True)},
    "terminal": {"ioctl": Rule(1, _IOCTLS, ALLOW, EPERM)},
    "personality": {"personality": Rule(0, _PERSONALITIES, ALLOW, EPERM)},
    "limits": {"prlimit64": Rule(0, (_ONESELF,), ALLOW, EPERM)},
}
"""Rules about arguments, by the guard they belong to."""


def get_ranges(arch: str, *, memfd: bool, without: frozenset[str] = frozenset()) -> list[tuple[int, Verdict]]:
    """The whole decision as (first number, verdict) pairs in ascending order; each pair holds up to the next.

    `memfd` allows memfd_create, which only a memory cgroup can bound (threats.md 1.3, trap 4). `without` names guards
    whose rules are left out, so that a test can show what each is for.
    """
    exact: dict[int, Verdict] = dict.fromkeys(ABSENT[arch].values(), ENOSYS)
    rules = {name: rule for guard, named in GUARDED.items() if guard not in without for name, rule in named.items()}
    for name, number in ALLOWED[arch].items():
        exact[number] = rules.get(name, ALLOW)
    if not memfd:
        exact[ALLOWED[arch][MEMFD_CREATE]] = EPERM
    if "namespaces" in without:
        exact |= dict.fromkeys({"x86_64": (272,), "aarch64": (97,)}[arch], ALLOW)  # unshare
    edges = {0, _X32_BIT} if arch == "x86_64" else {0}
    for low, high in KNOWN[arch]:
        edges |= {low, high + 1}
    for number in exact:
        edges |= {number, number + 1}
    ranges: list[tuple[int, Verdict]] = []
    for number in sorted(edges):
        verdict = exact.get(number, _get_default(arch, number))
        if not ranges or ranges[-1][1] != verdict:
            ranges.append((number, verdict))
    return ranges


def _get_default(arch: str, number: int) -> int:
    if arch == "x86_64" and number >= _X32_BIT:
        return KILL
    return EPERM if any(low <= number <= high for low, high in KNOWN[arch]) else ENOSYS


def build_filter(arch: str, *, memfd: bool, without: frozenset[str] = frozenset()) -> list[Instruction]:
    """The program for an architecture; `KeyError` for one that has none."""
    start: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, ARCHITECTURES[arch]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    return start + _search(get_ranges(arch, memfd=memfd, without=without))


def _search(ranges: list[tuple[int, Verdict]]) -> list[Instruction]:
    """Code that finds the range of the number in the accumulator: `if number >= middle: upper else: lower`, upper half
    first.
    """
    if len(ranges) == 1:
        return _decide(ranges[0][1])
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    return [(_JGE, 0, len(upper), first), *upper, *lower]


def _decide(verdict: Verdict) -> list[Instruction]:
    if isinstance(verdict, int):
        return [(_RETURN, 0, 0, verdict)]
    jump = _JSET if verdict.bits else _JEQ
    tests = [(jump, len(verdict.values) - i, 0, value) for i, value in enumerate(verdict.values)]
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * verdict.argument),
        *tests,
        (_RETURN, 0, 0, verdict.miss),
        (_RETURN, 0, 0, verdict.hit),
    ]


def assemble(program: list[Instruction]) -> bytes:
    """The program as the kernel takes it: `struct sock_filter` after `struct sock_filter`, little endian."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def find_range(ranges: list[tuple[int, Verdict]], number: int) -> Verdict:
    """The verdict on a number before its arguments are looked at."""
    return ranges[bisect_right(ranges, number, key=lambda row: row[0]) - 1][1]
