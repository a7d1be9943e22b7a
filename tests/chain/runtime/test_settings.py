"""Settings: file under variable under flag, unknown names refused; and where data lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from chain.base.errors import Refused
from chain.runtime.home import tally_home
from chain.runtime.settings import load_settings

PREFIX = "TALLY_TOY_"


class Toy(msgspec.Struct, frozen=True):
    """Settings of a part that does not exist."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1
    data_folder: str = "default"
    verbose: bool = False
    limit: float = 1.0


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def find_rule(path: Path | None, **flags: Any) -> str | None:
    try:
        load_settings(Toy, path, PREFIX, flags)
    except Refused as error:
        return error.rule
    return None


@pytest.mark.parametrize("flag", [None, 30])
@pytest.mark.parametrize("variable", [None, 20])
@pytest.mark.parametrize("file", [None, 10])
def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int | None, variable: int | None, flag: int | None
) -> None:
    path = write(tmp_path, f"port = {file}\n" if file else "")
    monkeypatch.setenv(f"{PREFIX}PORT", str(variable))
    if variable is None:
        monkeypatch.delenv(f"{PREFIX}PORT")
    assert load_settings(Toy, path, PREFIX, {"port": flag}).port == (flag or variable or file or 1)


def test_each_field_comes_from_the_highest_place_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'port = 10\ndata_folder = "file"\nverbose = true\n')
    monkeypatch.setenv(f"{PREFIX}PORT", "20")
    monkeypatch.setenv(f"{PREFIX}DATA_FOLDER", "variable")
    assert load_settings(Toy, path, PREFIX, {"port": 30, "data_folder": None}) == Toy(30, "variable", True, 1.0)
    assert load_settings(Toy, path, "OTHER_", {}) == Toy(10, "file", True, 1.0)


def test_nothing_given_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(Toy, None, PREFIX, {}) == Toy()
    assert load_settings(Toy, tmp_path / "none.toml", PREFIX, {}) == Toy()


VARIABLES = [("PORT", "8080", "port", 8080), ("VERBOSE", "true", "verbose", True), ("VERBOSE", "0", "verbose", False),
             ("LIMIT", "2.5", "limit", 2.5), ("DATA_FOLDER", "7", "data_folder", "7")]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "field", "value"), VARIABLES)
def test_a_variable_takes_the_type_of_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: Any
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", text)
    assert getattr(load_settings(Toy, None, PREFIX, {}), field) == value


BAD = [
    ("an unknown name", "prot = 1", "settings.name"),
    ("an unknown table", "[port2]\na = 1", "settings.name"),
    ("out of range", "port = 0", "settings.value"),
    ("another type", "port = []", "settings.value"),
    ("a word for a number", 'port = "many"', "settings.value"),
    ("no TOML", "port 1", "settings.form"),
    ("a name twice", "port = 1\nport = 2", "settings.form"),
]


@pytest.mark.parametrize(("text", "rule"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, rule: str) -> None:
    assert find_rule(write(tmp_path, text)) == rule


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_bytes(b"\xff\xfe")
    assert find_rule(tmp_path / "toy.toml") == "settings.form"
    assert find_rule(tmp_path) == "settings.form"


def test_an_unknown_flag_is_refused_and_the_message_lists_what_is_known() -> None:
    assert find_rule(None, prot=1) == "settings.name"
    assert find_rule(None, prot=None) is None
    with pytest.raises(Refused, match=r"'prot'.*data_folder, limit, port, verbose"):
        load_settings(Toy, None, PREFIX, {"prot": 1})


def test_a_bad_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}PORT", "-5")
    assert find_rule(None) == "settings.value"


HOMES = [
    ({"TALLY_HOME": "/data/t"}, 1000, "/data/t"),
    ({"TALLY_HOME": "/data/t"}, 0, "/data/t"),
    ({"XDG_DATA_HOME": "/xdg"}, 0, "/var/lib/tallystick"),
    ({"XDG_DATA_HOME": "/xdg"}, 1000, "/xdg/tallystick"),
    ({"HOME": "/users/me"}, 1000, "/users/me/.local/share/tallystick"),
    ({"TALLY_HOME": "", "HOME": "/users/me"}, 1000, "/users/me/.local/share/tallystick"),
]


@pytest.mark.skipif(os.name != "posix", reason="platform: users have no numbers")
@pytest.mark.parametrize(("variables", "user", "home"), HOMES)
def test_where_data_lies(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], user: int, home: str) -> None:
    for name in ("TALLY_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert tally_home() == Path(home)
