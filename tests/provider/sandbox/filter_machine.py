"""A machine for classic BPF programs as seccomp uses them: enough of it to run our filter without privilege."""

from __future__ import annotations

import struct

LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def run_filter(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """The verdict on one call. Raises ValueError for anything the kernel's checker would refuse: jumps out of the
    program, loads out of the data, unknown codes, an end without a verdict.
    """
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
    count = len(program) // 8
    at = accumulator = 0
    while at < count:
        code, true, false, constant = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == LOAD:
            if constant % 4 or constant + 4 > len(data):
                raise ValueError(f"load at {constant}")
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == JUMP_EQUAL:
            at += true if accumulator == constant else false
        elif code == JUMP_GREATER_EQUAL:
            at += true if accumulator >= constant else false
        elif code == JUMP_SET:
            at += true if accumulator & constant else false
        elif code == RETURN:
            return int(constant)
        else:
            raise ValueError(f"code {code:#x}")
    raise ValueError("ran past the end")
