"""The system call filter, every number of both architectures in a simulated machine. The oracle is written from the
rules, not from the ranges.
"""

from __future__ import annotations

import errno
import random
import struct

import pytest

from provider.sandbox.seccomp import ARCHITECTURES, assemble, build_filter
from provider.sandbox.syscalls import ABSENT, ALLOWED, KNOWN
from tests.provider.sandbox.filter_machine import run_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCHS = [*ARCHITECTURES]

# Numbers written down a second time, from the kernel's tables: name, x86-64, aarch64.
FORBIDDEN = """
ptrace:101:117 mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 unshare:272:97 setns:308:268
init_module:175:105 kexec_load:246:104 reboot:169:142 swapon:167:224 bpf:321:280 perf_event_open:298:241
userfaultfd:323:282 keyctl:250:219 add_key:248:217 process_vm_readv:310:270 process_vm_writev:311:271
kcmp:312:272 mknodat:259:33 setuid:105:146 setresuid:117:147 clock_settime:227:112 open_by_handle_at:304:265
name_to_handle_at:303:264 quotactl:179:60 syslog:103:116 shmget:29:194 msgget:68:186 semget:64:190
mq_open:240:180 sethostname:170:161 vmsplice:278:75 fanotify_init:300:262 iopl:172:- mlock:149:228
setpriority:141:140 memfd_secret:447:447 move_mount:429:429 fsopen:430:430 process_madvise:440:440
seccomp:317:277 capset:126:91
"""
NEEDED = """
read:0:63 write:1:64 mmap:9:222 futex:202:98 execve:59:221 exit_group:231:94 openat:257:56
clock_gettime:228:113 getrandom:318:278 wait4:61:260 rt_sigreturn:15:139 close_range:436:436 pipe2:293:59
getppid:110:173
"""
FALL_BACK = (
    "clone3:435:435 io_uring_setup:425:425 openat2:437:437 pidfd_open:434:434 pidfd_getfd:438:438 io_setup:206:0"
)


def numbers(table: str, arch: str) -> dict[str, int]:
    rows = (row.split(":") for row in table.split())
    return {row[0]: int(row[1 + ARCHS.index(arch)]) for row in rows if row[1 + ARCHS.index(arch)] != "-"}


def decide(arch: str, number: int, arguments: tuple[int, ...] = (0,) * 6, *, memfd: bool = True) -> int:
    program = assemble(build_filter(arch, memfd=memfd))
    return run_filter(program, ARCHITECTURES[arch], number, arguments)


def expect(arch: str, number: int, arguments: tuple[int, ...], memfd: bool) -> int:
    """The rules of threats.md 1.4, said once more."""
    names = {value: name for name, value in ALLOWED[arch].items()}
    name = names.get(number, "")
    low = [argument & 0xFFFFFFFF for argument in arguments]
    if arch == "x86_64" and number & 0xC0000000:
        return KILL
    if number in ABSENT[arch].values():
        return ENOSYS
    if name == "memfd_create" and not memfd:
        return EPERM
    if name in ("socket", "socketpair"):
        return ALLOW if low[0] == 1 else EPERM
    if name == "clone":
        return EPERM if low[0] & 0x7E020000 else ALLOW
    if name == "ioctl":
        return ALLOW if low[1] in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451) else EPERM
    if name == "personality":
        return ALLOW if low[0] in (0, 0xFFFFFFFF) else EPERM
    if name:
        return ALLOW
    return EPERM if any(start <= number <= end for start, end in KNOWN[arch]) else ENOSYS


def sample_arguments(seed: int) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    telling = [0, 1, 2, 10, 16, 40, 0x5401, 0x5412, 0x5413, 0x5421, 0x541B, 0x5450, 0x10000000, 0x7E020000, 0x20000, 17]
    telling += [0xFFFFFFFF, 1 << 32, (1 << 32) + 0x5412, (1 << 63) + 1, 0x01200011, 0x3D0F00]
    rows: list[tuple[int, ...]] = [(value,) * 6 for value in telling]
    rows += [tuple(chance.choice([*telling, chance.getrandbits(64)]) for _ in range(6)) for _ in range(20)]
    return rows


@pytest.mark.parametrize("memfd", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_number_is_decided_by_the_rules(arch: str, memfd: bool, seed: int) -> None:
    program = assemble(build_filter(arch, memfd=memfd))
    chance = random.Random(seed)
    far = [1 << 30, (1 << 30) - 1, (1 << 30) + 1, 0x40000027, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    rows = sample_arguments(seed)
    guarded = {ALLOWED[arch][name] for name in ("socket", "socketpair", "clone", "ioctl", "personality")}
    for number in [*range(1024), *far, *(chance.getrandbits(32) for _ in range(2000))]:
        for arguments in rows if number in guarded else rows[:1]:
            found = run_filter(program, ARCHITECTURES[arch], number, arguments)
            assert found == expect(arch, number, arguments, memfd), (number, arguments)


@pytest.mark.parametrize("arch", ARCHS)
def test_named_calls(arch: str) -> None:
    assert {name: decide(arch, n) for name, n in numbers(FORBIDDEN, arch).items() if decide(arch, n) != EPERM} == {}
    assert {name: decide(arch, n) for name, n in numbers(NEEDED, arch).items() if decide(arch, n) != ALLOW} == {}
    assert {name: decide(arch, n) for name, n in numbers(FALL_BACK, arch).items() if decide(arch, n) != ENOSYS} == {}


@pytest.mark.parametrize("arch", ARCHS)
def test_another_architecture_is_killed(arch: str) -> None:
    program = assemble(build_filter(arch, memfd=True))
    others = {0x40000003, 0xC000003E, 0xC00000B7, 0x40000028, 0} - {ARCHITECTURES[arch]}
    assert {run_filter(program, other, number) for other in others for number in range(0, 500, 7)} == {KILL}


def test_a_call_of_the_x32_table_is_killed() -> None:
    assert {decide("x86_64", 0x40000000 | number) for number in range(0, 600, 13)} == {KILL}


@pytest.mark.parametrize(("guard", "name", "arguments"), [
    ("network", "socket", (2, 1, 0, 0, 0, 0)),
    ("namespaces", "clone", (0x10000011, 0, 0, 0, 0, 0)),
    ("terminal", "ioctl", (0, 0x5412, 0, 0, 0, 0)),
    ("personality", "personality", (0x40000, 0, 0, 0, 0, 0)),
])  # fmt: skip
@pytest.mark.parametrize("arch", ARCHS)
def test_a_rule_left_out_lets_its_call_pass(arch: str, guard: str, name: str, arguments: tuple[int, ...]) -> None:
    number = ALLOWED[arch][name]
    assert decide(arch, number, arguments) == EPERM
    weaker = assemble(build_filter(arch, memfd=True, without=frozenset({guard})))
    assert run_filter(weaker, ARCHITECTURES[arch], number, arguments) == ALLOW


@pytest.mark.parametrize("arch", ARCHS)
def test_program_is_one_the_kernel_takes(arch: str) -> None:
    program = build_filter(arch, memfd=True)
    assert len(program) < 4096
    for at, (code, true, false, _) in enumerate(program):
        if code & 7 == 5:
            assert at + 1 + max(true, false) < len(program)
    assert program[-1][0] == 6
    assert len(assemble(program)) == 8 * len(program)
    assert assemble(program)[:8] == struct.pack("<HBBI", 0x20, 0, 0, 4)


def test_no_number_is_listed_twice() -> None:
    for arch in ARCHS:
        allowed = list(ALLOWED[arch].values())
        assert len(allowed) == len(set(allowed))
        assert not set(allowed) & set(ABSENT[arch].values())
