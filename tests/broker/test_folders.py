"""Folders: what is packed comes back, and no name of a stranger leaves the folder, hides, or stands for two files."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import folders
from broker.protocol.folders import NAME, check_files, pack_folder, unpack_folder
from broker.protocol.values import BadValue, CannotCarry, pack

parts = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,6}[a-z0-9_]", fullmatch=True).filter(
    lambda one: one.split(".")[0] not in {"con", "prn", "aux", "nul"} and one[:3] not in {"com", "lpt"}
)
trees = st.dictionaries(st.tuples(parts, parts).map("/f_".join), st.binary(max_size=20), max_size=8)


@given(trees)
def test_what_is_packed_comes_back(files: dict[str, bytes]) -> None:
    data = pack_folder(files)
    assert unpack_folder(data) == files
    assert unpack_folder(memoryview(data)) == files
    assert pack_folder(dict(reversed(files.items()))) == data


def test_names_that_code_has_are_carried() -> None:
    files = {
        "main.py": b"import pkg", "pkg/__init__.py": b"", "pkg/_private.py": b"", "data/Set-1.v2.csv": b"1,2",
        "0": b"", "a..b": b"", "x" * 100: b"", "/".join("abcdefghijklmnop"): b"", "conx.py": b"", "com.py": b"",
    }  # fmt: skip
    assert unpack_folder(pack_folder(files)) == files


BAD_NAMES = [
    "", ".", "..", "/", "a/", "/a", "a//b", "../a", "a/../b", "a/..", "./a", "a/./b", "~", "~/a", "-rf", "a/-x",
    ".hidden", "a/.ssh", "C:a", "C:\\a", "a\\b", "..\\a", "\\\\host\\a", "a:stream", "a b", " a", "a ", "a\n", "a\0b",
    "a\x1b[2Jb", "a\x7f", "a.", "a./b", "a...", "a\u202egpj", "\u00e9", "e\u0301", "\uff0e\uff0e/a", "\u2215a",
    "\ud800", "a*", "a?", "<a>", "a|b", "a\"b", "$HOME", "`id`", "a;b", "%2e%2e", "x" * 101,
    "/".join("abcdefghijklmnopq"), "con", "CON", "nul.txt", "a/Aux", "prn.tar.gz", "COM1", "lpt9.x",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_both_ways(name: str) -> None:
    with pytest.raises(CannotCarry) as caught:
        pack_folder({"main.py": b"", name: b"x"})
    assert caught.value.path.startswith("folder[")
    assert str(caught.value).isprintable()
    with pytest.raises(BadValue) as refused:
        check_files({"main.py": b"", name: b"x"})
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()


@given(st.text(max_size=40))
def test_any_name_that_passes_lies_below_and_means_itself(name: str) -> None:
    try:
        check_files({name: b""})
    except BadValue:
        return
    place = Path("/top", name)
    assert Path("/top") in place.parents
    assert ".." not in place.parts
    assert name.isascii()
    assert unicodedata.normalize("NFKC", name) == name
    assert all(NAME.fullmatch(part) for part in name.split("/"))


COLLISIONS: dict[str, dict[str, bytes]] = {
    "case": {"a": b"", "A": b""},
    "case below": {"x/a": b"", "x/A": b""},
    "case of a folder": {"x/a": b"", "X/b": b""},
    "file and folder": {"a": b"", "a/b": b""},
    "folder and file": {"a/b": b"", "a": b""},
    "file and folder in another case": {"a": b"", "A/b": b""},
    "deep": {"a/b/c": b"", "a/b/c/d/e": b""},
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_two_names_for_one_file_are_refused(name: str) -> None:
    with pytest.raises(CannotCarry):
        pack_folder(COLLISIONS[name])
    with pytest.raises(BadValue):
        unpack_folder(pack(COLLISIONS[name]))


BAD_FOLDERS: dict[str, Any] = {
    "a list": ["main.py"],
    "None": None,
    "a name of bytes": {b"main.py": b""},
    "a name of no type": {None: b""},
    "text as file": {"main.py": "x"},
    "a folder as file": {"a": {"b": b""}},
    "a number as file": {"main.py": 3},
    "an array as file": {"main.py": [b""]},
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_what_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(BadValue):
        unpack_folder(pack(BAD_FOLDERS[name]))
    if isinstance(BAD_FOLDERS[name], dict):
        with pytest.raises(CannotCarry):
            pack_folder(BAD_FOLDERS[name])


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x80\x04\x95.", b"\x82\xa1a\xc4\0\xa1a\xc4\0"]
)
def test_bytes_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(BadValue):
        unpack_folder(data)


def test_number_and_size_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = {f"f{number}": b"" for number in range(4096)}
    assert len(unpack_folder(pack_folder(most))) == 4096
    with pytest.raises(CannotCarry, match="files beyond 4096"):
        pack_folder(most | {"one": b""})
    with pytest.raises(BadValue, match="files beyond 4096"):
        unpack_folder(pack(most | {"one": b""}))
    monkeypatch.setattr(folders, "MAX_FOLDER_BYTES", 100)
    assert pack_folder({"a": bytes(60), "b": bytes(40)})
    with pytest.raises(CannotCarry, match="size beyond 100 bytes"):
        pack_folder({"a": bytes(60), "b": bytes(41)})
    with pytest.raises(BadValue, match="size beyond 100 bytes"):
        check_files({"a": bytes(60), "b": bytes(41)})
    monkeypatch.setattr(folders, "_OVERHEAD", 10)
    with pytest.raises(BadValue, match="where at most 110"):
        unpack_folder(pack({"a": bytes(200)}))


@given(st.binary(max_size=100), trees, st.integers(0), st.integers(0, 255))
def test_noise_and_a_changed_byte_are_a_folder_or_refused(
    noise: bytes, files: dict[str, bytes], at: int, byte: int
) -> None:
    data = bytearray(pack_folder(files))
    data[at % len(data)] = byte
    for one in (noise, bytes(data)):
        try:
            found = unpack_folder(one)
        except BadValue:
            continue
        assert check_files(found) == found
