"""Bytes that a stranger gives as a job value, list or folder: whatever they are, reading them runs nothing, takes
little memory and ends.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import msgpack
import numpy
import pandas
import pytest

from broker.protocol.folders import unpack_folder
from broker.protocol.values import BadValue, pack, split, unpack

READERS: tuple[Callable[[bytes], object], ...] = (
    unpack, lambda data: unpack(data, copy=False), split, unpack_folder,
)  # fmt: skip


class Trap:
    """Writes a file wherever it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def make_pickles(place: Path) -> dict[str, bytes]:
    trap = Trap(place)
    file = io.BytesIO()
    numpy.save(file, numpy.array([trap], object), allow_pickle=True)
    frame = io.BytesIO()
    pandas.DataFrame({"x": [trap]}).to_pickle(frame)
    return {
        **{f"protocol {one}": pickle.dumps(trap, one) for one in range(pickle.HIGHEST_PROTOCOL + 1)},
        "cloudpickle": cloudpickle.dumps(trap),
        "array file": file.getvalue(),
        "frame": frame.getvalue(),
        "reduction": b"cos\nmkdir\n(S'" + str(place).encode() + b"'\ntR.",
    }


def test_pickles_are_no_values_and_never_loaded(tmp_path: Path) -> None:
    place = tmp_path / "sprung"
    for name, data in make_pickles(place).items():
        for read in READERS:
            with pytest.raises(BadValue):
                read(data)
        assert unpack(pack({"x": data})) == {"x": data}, f"{name} within a value stays bytes"
        for kind in (b"frame", b"series", b"table", b"batch"):
            array = msgpack.ExtType(4, b"|u1 \x01" + struct.pack(">Q", len(data)) + data)
            for part in (data, array, ["plain", [data]], [None, array]):
                with pytest.raises(BadValue):
                    unpack(msgpack.packb([msgpack.ExtType(7, kind), part]))
        assert not place.exists(), name
    pickle.loads(make_pickles(place)["protocol 4"])
    assert place.exists(), "the trap works"


BOMBS: dict[str, bytes] = {
    **{f"header {code:02x} of 4 G": bytes([code]) + b"\xff" * 4 for code in (*range(0xC6, 0xCA), *range(0xDB, 0xE0))},
    **{f"header {code:02x} of 4 G and more": bytes([code]) + b"\xff" * 4 + bytes(10_000) for code in range(0xC6, 0xE0)},
    **{f"extension {code} of 4 G": b"\xc9\xff\xff\xff\xff" + bytes([code]) for code in range(256)},
    "a million levels": b"\x91" * 1_000_000,
    "a million levels that end": b"\x91" * 1_000_000 + b"\x01",
    "a million levels of dicts": b"\x81\x01" * 1_000_000,
    "a million levels of tuples": b"\x92\xc7\x00\x03" * 500_000,
    "a thousand levels": b"\x91" * 1_000 + b"\x01",
    "a million lists": b"\xdd" + struct.pack(">I", 2**20 + 1) + b"\x90" * (2**20 + 1),
    "a million dicts": b"\xdd" + struct.pack(">I", 2**20 + 1) + b"\x80" * (2**20 + 1),
    "a dict of many keys": msgpack.packb(dict.fromkeys(range(2**18 + 1))),
    "a list that names 16 E items": b"\xc1tl\x01" + b"\xff" * 8,
    "a list that names a million items": b"\xc1tl\x01" + struct.pack(">Q", 2**20) + bytes(8 * 2**20),
    "a list of items of 16 E": b"\xc1tl\x01" + struct.pack(">Q", 1000) + b"\xff" * 8000,
    "a body of 16 E": b"\xc1ta\x01" + b"\xff" * 8,
    "a body of levels": b"\xc1ta\x01" + struct.pack(">Q", 1_000_000) + b"\x91" * 1_000_000,
    "an array of 16 E": msgpack.packb(msgpack.ExtType(4, b"|u1 \x01" + b"\xff" * 8)),
    "an array of 16 E outside": b"\xc1ta\x01" + struct.pack(">Q", 16) + b"\xc7\x0d\x06|u1 \x01" + b"\xff" * 8,
    "a frame of 2^61 rows": msgpack.packb(
        [msgpack.ExtType(7, b"frame"), [None, ["plain", []]], [None, ["range", 0, 2**61, 1]], []]
    ),
    "a frame of 2^61 columns": msgpack.packb(
        [msgpack.ExtType(7, b"frame"), [None, ["range", 0, 2**61, 1]], [None, ["range", 0, 0, 1]], []]
    ),
    "a stream that names 2 G": msgpack.packb(
        [msgpack.ExtType(7, b"table"), msgpack.ExtType(4, b"|u1 \x01" + struct.pack(">Q", 16) + b"\xff" * 4
         + b"\xff\xff\xff\x7f" + bytes(8))]
    ),
}  # fmt: skip

PROGRAM = """
import json, resource, sys
import numpy, pandas, pyarrow.ipc
from broker.protocol.folders import unpack_folder
from broker.protocol.values import BadValue, split, unpack
loaded = []
sys.addaudithook(lambda event, args: loaded.append(args) if event in ("pickle.find_class", "exec") else None)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (768 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
refused = 0
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    for read in (unpack, lambda data: unpack(data, copy=False), split, unpack_folder):
        try:
            read(data)
        except BadValue:
            refused += 1
print(json.dumps([refused, len(loaded)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="platform: limits of memory are Linux's")
def test_bombs_are_refused_within_little_memory(tmp_path: Path) -> None:
    """In a process of its own, which may take 768 MiB and 100 seconds more than it has at its start."""
    paths = [tmp_path / str(number) for number in range(len(BOMBS))]
    for path, data in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran = json.loads(done.stdout)
    assert refused == 4 * len(BOMBS)
    assert ran == 0


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", "a/../../b", ".ssh/config", "C:\\x", "a\x1b]0;b\x07"])
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(BadValue) as caught:
        unpack_folder(pack({"main.py": b"", name: b"x"}))
    assert str(caught.value).isprintable()


def test_not_a_number_is_data() -> None:
    """No price or count is a float anywhere; in a result they mean what the job computed."""
    found = unpack(pack([float("nan"), float("inf"), numpy.array([numpy.nan])]))
    assert [repr(one) for one in found[:2]] == ["nan", "inf"]
    assert numpy.isnan(found[2]).all()
