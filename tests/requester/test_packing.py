"""What is sent: folders with what they hold and no more, functions by name, large inputs straight into the store."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.folders import unpack_folder
from broker.protocol.jobs import Entry
from broker.protocol.values import pack, split, unpack
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Kind
from requester.client import packing, sources
from requester.client.packing import (
    Inputs,
    find_packages,
    make_map,
    make_run,
    make_train,
    pack_code,
    pack_function,
    pack_source,
    split_source,
)
from requester.client.wishes import Wishes, make_spec
from requester.store.blobs import BlobFolder

ONE = b"def only(item):\n    return item\n"


def make_folder(path: Path, **files: str) -> Path:
    path.mkdir()
    (path / "main.py").write_text("def f(item):\n    return item\n")
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_a_folder_goes_as_a_whole_but_for_what_is_hidden(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "project", data="x")
    for name in (".git/config", "__pycache__/main.pyc", "deep/er/part.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("y")
    (folder / ".env").write_text("SECRET")
    code = pack_source(folder)
    assert (code.entry, code.title, code.function) == (Entry.FOLDER, "project", "")
    assert sorted(unpack_folder(code.blob)) == ["data", "deep/er/part.py", "main.py"]
    assert pack_source(folder, Kind.MAP).function == "f"


def test_folders_that_cannot_be_sent_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> str:
        with pytest.raises(Refused) as refused:
            pack_source(folder)
        return refused.value.rule

    empty = tmp_path / "empty"
    empty.mkdir()
    assert refuse(empty) == "folder.main"
    linked = make_folder(tmp_path / "linked")
    (linked / "passwords").symlink_to("/etc/passwd")
    assert refuse(linked) == "folder.link"
    tree = make_folder(tmp_path / "tree")
    (tree / "up").symlink_to(tmp_path)
    assert refuse(tree) == "folder.link"
    named = make_folder(tmp_path / "named", **{"a b": "x"})
    assert refuse(named) == "folder.files"
    broken = make_folder(tmp_path / "broken")
    (broken / "main.py").write_text("def")
    assert refuse(broken) == "script.syntax"
    monkeypatch.setattr(sources, "MAX_FILES", 2)
    assert refuse(make_folder(tmp_path / "many", a="", b="")) == "folder.size"
    monkeypatch.setattr(sources, "MAX_FOLDER_BYTES", 3)
    assert refuse(make_folder(tmp_path / "large")) == "folder.size"


FUNCTIONS: list[tuple[bytes, Kind, str, str]] = [
    (ONE, Kind.MAP, "", "only"),
    (ONE, Kind.MAP, "only", "only"),
    (ONE, Kind.TRAIN, "only", "only"),
    (ONE + b"def _hidden():\n    pass\n", Kind.MAP, "", "only"),
    (ONE + b"def step(s, i):\n    return s\n", Kind.TRAIN, "", "step"),
    (b"from part import *\n", Kind.MAP, "anything", "anything"),
    (b"from part import double as twice\n", Kind.MAP, "twice", "twice"),
    (b"f = lambda x: x\n", Kind.MAP, "f", "f"),
    (b"if True:\n    def f(x): return x\n", Kind.MAP, "f", "f"),
    (ONE, Kind.RUN, "", ""),
]


@pytest.mark.parametrize(("source", "kind", "named", "chosen"), FUNCTIONS)
def test_the_function_that_is_called(source: bytes, kind: Kind, named: str, chosen: str) -> None:
    assert sources.choose_function(source, Path("a.py"), kind, named) == chosen


@pytest.mark.parametrize(
    ("source", "kind", "named"),
    [
        (ONE, Kind.MAP, "other"),
        (ONE + b"def step(s, i):\n    return s\n", Kind.MAP, ""),
        (ONE, Kind.TRAIN, ""),
        (b"x = 1\n", Kind.MAP, ""),
        (b"class A:\n    def f(self): pass\n", Kind.MAP, ""),
        (ONE, Kind.RUN, "only"),
    ],
)
def test_a_function_that_nobody_could_mean_is_refused(source: bytes, kind: Kind, named: str) -> None:
    with pytest.raises(Refused) as refused:
        sources.choose_function(source, Path("a.py"), kind, named)
    assert refused.value.rule == "script.function"


def test_a_train_names_the_functions_that_are_there() -> None:
    with pytest.raises(Refused, match=r"^a\.py defines only, no step; say which is called, for example a\.py:only"):
        sources.choose_function(ONE, Path("a.py"), Kind.TRAIN, "")
    with pytest.raises(Refused, match=r"defines no function, no step; .* a\.py:NAME"):
        sources.choose_function(b"x = 1\n", Path("a.py"), Kind.TRAIN, "")


def test_a_table_among_the_inputs_asks_for_its_package() -> None:
    """Whoever has it not could not read the inputs, and the job would fail there, and be paid."""
    frame, table = pandas.DataFrame({"a": [1]}), pyarrow.table({"a": [1]})
    code = pack_function(len)
    assert make_run(code, (1, [frame]), {}).packages == ("pandas",)
    assert make_run(code, (), {"x": {"y": (table, frame["a"])}}).packages == ("pandas", "pyarrow")
    assert make_map(code, iter([1, table])).packages == ("pyarrow",)
    assert make_train(code, {"state": frame}, 2).packages == ("pandas",)
    assert make_run(code, (1, "pandas", [np.zeros(3)]), {"pandas": 1}).packages == ()
    packages = make_spec(make_run(code, (frame,), {}), Wishes(packages=("scipy",))).runtime.packages
    assert packages == ("pandas", "scipy")


def test_without_a_package_of_tables_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TABLES", frozenset({"no_such_package"}))
    monkeypatch.setattr(packing, "find_kind", None)
    assert find_packages([1]) == ()


def test_no_more_of_a_value_is_looked_at_than_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_WALKED", 3)
    assert find_packages([1, pandas.Series([1])]) == ("pandas",)
    assert find_packages([1, 2, pandas.Series([1])]) == ()


def test_a_source_is_a_path_with_or_without_a_function(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.write_bytes(ONE)
    assert split_source("dir/a.py:f") == (Path("dir/a.py"), "f")
    assert split_source("a.py") == (Path("a.py"), "")
    assert split_source("C:/a.py") == (Path("C:/a.py"), "")
    assert split_source(str(odd)) == (odd, "")
    (tmp_path / "a.py").write_bytes(ONE)
    assert pack_code(tmp_path / "a.py", Kind.MAP).function == "only"
    assert pack_code(abs, Kind.MAP).entry is Entry.FUNCTION


@given(items=st.lists(st.one_of(st.integers(), st.text(), st.binary(max_size=100), st.just(np.ones(9_000)))))
def test_items_are_packed_one_by_one_and_named_by_their_digests(items: list[object]) -> None:
    """The order starts from the RFC 6962 root over the digests of the items."""
    if not items:
        with pytest.raises(Refused):
            make_map(pack_function(abs), items)
        return
    work = make_map(pack_function(abs), items)
    parts = split(work.inputs.join())
    assert [bytes(part) for part in parts] == [pack(item) for item in items]
    assert work.items == tuple(compute_digest(part) for part in parts)
    assert (work.segments, work.item_root) == (len(items), compute_root(work.items))
    assert work.inputs.size == len(work.inputs.join())


def test_a_state_is_packed_as_it_is() -> None:
    work = make_train(pack_function(abs), {"w": np.arange(3)}, 7)
    assert (work.segments, work.items, work.item_root) == (7, (), None)
    assert unpack(work.inputs.join())["w"].tolist() == [0, 1, 2]


def test_a_large_array_is_written_without_being_held_twice(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(4_000_000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    blobs = BlobFolder(tmp_path / "blobs")
    tracemalloc.start()
    try:
        work = make_train(pack_function(abs), {"x": mapped}, 1)
        work.inputs.keep(blobs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, "32 MB went through memory"
    data = blobs.path(work.inputs.digest).read_bytes()
    assert hashlib.sha256(data).digest() == work.inputs.digest
    assert len(data) == work.inputs.size > 32_000_000
    assert not list(blobs.folder.glob(".incoming*"))


def test_the_digest_is_the_same_whether_it_is_kept_first_or_asked_for_first(tmp_path: Path) -> None:
    for size in (10, 100_000):
        first, second = Inputs([bytes(size), b"end"]), Inputs([bytes(size), b"end"])
        asked = first.digest
        for one in (first, second):
            one.keep(BlobFolder(tmp_path / "blobs"))
        assert asked == second.digest == compute_digest(bytes(size) + b"end")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(Unavailable) as failed:
        Inputs([bytes(100_000)]).keep(BlobFolder(tmp_path / "blobs"))
    assert failed.value.rule == "file.write"
