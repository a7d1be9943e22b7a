"""Files as values and values as files: what is read back is what was written, and nothing in a file is ever run."""

from __future__ import annotations

import json
import os
import pickle
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from broker.protocol.values import pack, unpack
from chain.base.errors import Refused
from chain.ledger.terms.outcome import Usage
from requester import load
from requester.cli.files import WRITERS, check_target, write_result
from requester.cli.output import MAX_ITEMS
from requester.client.data import READERS
from requester.client.results import JobResult, MapResult, States, TrainResult
from requester.purchase.documents import Documents
from requester.store.blobs import BlobFolder
from tests.requester.world import World

WORLD = World()
DOCUMENTS = Documents(chain=WORLD.chain, order=WORLD.order, spec=WORLD.spec)
COMMON: dict[str, Any] = {
    "job": "ab" * 32, "cost": 1, "commission": 0, "settled": True, "usage": Usage(), "log": "", "metrics": [],
    "checks": 1, "records": {}, "blobs": BlobFolder(Path("/nonexistent")),
}  # fmt: skip


def make_result(value: Any, kind: str = "run", **fields: Any) -> Any:
    common = {**COMMON, "documents": DOCUMENTS}
    if kind == "map":
        return MapResult(values=value, failed={}, missing=(), **common, **fields)
    return JobResult(value=value, packed=pack(value), **common, **fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r.json", {"a": [1, None, 0.5]}),
        ("r.npy", np.arange(6).reshape(2, 3)),
        ("r.npz", {"w": np.eye(2), "b": 1.5}),
        ("r.safetensors", {"w": np.eye(2, dtype=np.float32), "b": np.ones(3)}),
        ("r.csv", [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]),
        ("r.parquet", [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, name: str, value: Any) -> None:
    assert write_result(tmp_path / name, make_result(value)) == [str(tmp_path / name)]
    found = load(tmp_path / name)
    if isinstance(found, pd.DataFrame):
        assert found.to_dict("records") == value
    elif isinstance(found, dict) and name != "r.json":
        assert {key: np.asarray(one).tolist() for key, one in found.items()} == {
            key: np.asarray(one).tolist() for key, one in value.items()
        }
    else:
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_tables_of_pandas_and_arrow_are_written_as_they_are(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    for value in (frame, frame["a"], pa.table({"a": [1, 2]})):
        write_result(tmp_path / "t.parquet", make_result(value), force=True)
        assert load(tmp_path / "t.parquet")["a"].tolist() == [1, 2]


def test_tables_are_told_as_columns_and_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "t": pd.to_datetime(["2026-01-02", None])})
    value = {"frame": frame, "series": frame["a"], "arrow": pa.table({"a": [1, 2], "t": [date(2026, 1, 2), None]})}
    write_result(tmp_path / "t.json", make_result(value))
    told = json.loads((tmp_path / "t.json").read_text())
    rows = [[1, "x", "2026-01-02T00:00:00.000"], [2, None, None]]
    assert told["frame"] == {
        "table": "pandas.DataFrame", "shape": [2, 3], "columns": ["a", "b", "t"], "index": [0, 1], "data": rows,
    }  # fmt: skip
    assert told["series"]["data"] == [1, 2]
    rows = [[1, "2026-01-02"], [2, None]]
    assert told["arrow"] == {"table": "pyarrow.Table", "shape": [2, 2], "columns": ["a", "t"], "data": rows}


def test_of_a_large_table_its_shape_is_told(tmp_path: Path) -> None:
    large = {"a": range(MAX_ITEMS + 1)}
    write_result(tmp_path / "t.json", make_result([pd.DataFrame(large), pa.table({"a": pa.array(large["a"])})]))
    for told in json.loads((tmp_path / "t.json").read_text()):
        assert told["shape"] == [MAX_ITEMS + 1, 1]
        assert "data" not in told


@pytest.mark.parametrize("name", ["r.json", "r.npz", "r.safetensors", "r.bin"])
def test_a_file_is_overwritten_only_on_demand_and_all_have_the_same_mode(tmp_path: Path, name: str) -> None:
    path, found = tmp_path / name, make_result({"w": np.ones(2)})
    write_result(path, found)
    (tmp_path / "plain").touch(0o644)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.write_bytes(b"mine")
    for write in (lambda: check_target(path), lambda: write_result(path, found)):
        with pytest.raises(Refused, match="--force overwrites") as refused:
            write()
        assert (refused.value.rule, path.read_bytes()) == ("output.exists", b"mine")
    check_target(path, force=True)
    write_result(path, found, force=True)
    assert path.read_bytes() != b"mine"


def test_a_link_that_leads_nowhere_counts_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").symlink_to(tmp_path / "absent")
    with pytest.raises(Refused) as refused:
        check_target(tmp_path / "r.json")
    assert refused.value.rule == "output.exists"


def test_the_packed_bytes_of_a_map_are_refused_with_all_forms_that_work(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        write_result(tmp_path / "m.bin", make_result([1], "map"))
    assert all(form in refused.value.message for form in set(WRITERS) - {".bin"})


def test_a_map_is_written_item_by_item(tmp_path: Path) -> None:
    rows = [np.ones(2), np.zeros(2)]
    write_result(tmp_path / "m.npy", make_result(rows, "map"))
    assert load(tmp_path / "m.npy").tolist() == [[1, 1], [0, 0]]
    write_result(tmp_path / "m.npz", make_result(rows, "map"))
    assert sorted(load(tmp_path / "m.npz")) == ["item_0", "item_1"]
    write_result(tmp_path / "m.csv", make_result([1, 2], "map"))
    assert load(tmp_path / "m.csv")["value"].tolist() == [1, 2]
    write_result(tmp_path / "m.json", make_result([1, None], "map"))
    assert json.loads((tmp_path / "m.json").read_text()) == [1, None]


def test_a_train_is_written_as_its_last_state(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs")
    states = States(blobs, blobs.put_many([pack({"w": np.zeros(2)}), pack({"w": np.ones(2)})]), copy=False)
    found = TrainResult(states=states, failed={}, missing=(), **COMMON, documents=DOCUMENTS)
    write_result(tmp_path / "s.safetensors", found)
    assert load(tmp_path / "s.safetensors")["w"].tolist() == [1, 1]
    write_result(tmp_path / "s.bin", found)
    assert unpack((tmp_path / "s.bin").read_bytes())["w"].tolist() == [1, 1]


UNFIT: list[tuple[str, Any, str]] = [
    ("r.npy", [1, 2], "run"),
    ("r.npy", [[1], None], "map"),
    ("r.npy", [np.ones(2), np.ones(3)], "map"),
    ("r.npz", {"a b": 1}, "run"),
    ("r.npz", {"a": [None]}, "run"),
    ("r.safetensors", {"a": np.ones(2, dtype=np.complex128)}, "run"),
    ("r.safetensors", [1], "run"),
    ("r.csv", 42, "run"),
    ("r.csv", {"a": 1}, "run"),
    ("r.bin", [1], "map"),
    ("r", 42, "run"),
]


@pytest.mark.parametrize(("name", "value", "kind"), UNFIT)
def test_values_that_do_not_fit_their_file_leave_none(tmp_path: Path, name: str, value: Any, kind: str) -> None:
    with pytest.raises(Refused) as refused:
        write_result(tmp_path / name, make_result(value, kind))
    assert refused.value.rule == "result.form"
    assert "the result is kept" in refused.value.message
    assert "index" not in refused.value.message  # pandas' own words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "/up", "a/../../up", "nul"])
def test_a_name_that_leads_elsewhere_is_refused_by_whoever_writes(tmp_path: Path, name: str) -> None:
    """Whoever read the result has checked it too; a path is made here."""
    (tmp_path / "below").mkdir()
    with pytest.raises(Refused) as refused:
        write_result(tmp_path / "below", make_result(None, files={name: b"x"}), force=True)
    assert refused.value.rule == "result.form"
    assert [one.name for one in tmp_path.rglob("*")] == ["below"]


def test_a_package_that_is_missing_is_named_before_anything_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("w.safetensors", "safetensors"), ("t.csv", "pandas"), ("t.parquet", "pandas")):
        with monkeypatch.context() as patch:
            for one in ("safetensors.numpy", "pandas", "pyarrow"):
                patch.setitem(sys.modules, one, None)
            with pytest.raises(Refused, match=f"pip install {package}") as refused:
                check_target(tmp_path / name)
            assert refused.value.rule == "load.package"
    check_target(tmp_path / "w.safetensors")


class Run:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_in_a_file_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Run()], dtype=object), allow_pickle=True)
    np.savez("a.npz", x=np.array([Run()], dtype=object))
    for name in ("a.safetensors", "a.json", "b.npy", "b.npz", "a.parquet"):
        Path(name).write_bytes(pickle.dumps(Run()))
    for name in ("a.npy", "a.npz", "a.safetensors", "a.json", "b.npy", "b.npz", "a.parquet"):
        with pytest.raises(Refused) as refused:
            load(name)
        assert refused.value.rule == "load.form", name
    assert not Path("ran").exists()


def test_files_that_are_not_there_or_of_no_form(tmp_path: Path) -> None:
    for name in READERS:
        with pytest.raises(Refused) as refused:
            load(tmp_path / f"absent{name}")
        assert refused.value.rule == "load.file", name
    with pytest.raises(Refused, match=r"there are \.npy") as refused:
        load("a.pkl")
    assert refused.value.rule == "load.form"
    assert ".pkl" not in WRITERS


def test_an_array_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    assert isinstance(load(tmp_path / "a.npy"), np.memmap)
