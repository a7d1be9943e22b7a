"""The house rules hold for every file of the project. One row per rule and wing, so that a failure names both."""

from __future__ import annotations

import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.house import imports, rules, texts
from tests.house.rules import Source

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("chain", "broker", "provider", "requester")
HOUSE = "tests.house."
PORTABLE = ("chain.base", "chain.light", "requester")


@cache
def list_files() -> list[Path]:
    """Every file that is tracked or about to be; without git, every file outside hidden and built folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found = (ROOT / name for name in done.stdout.split("\0") if name)
    else:
        found = (path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts))
    return sorted(path for path in found if path.is_file())


@cache
def read_sources(top: str) -> list[Source]:
    """The Python files below one top folder. A file that vanishes while it is read is nobody's fault."""
    sources = []
    for path in list_files():
        relative = path.relative_to(ROOT)
        if path.suffix == ".py" and relative.parts[0] == top:
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            sources.append(Source(module, path.read_text("utf-8")))
    return sources


def read_layers() -> list[str]:
    """The lines of the layers contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return list(next(one["layers"] for one in contracts if one["id"] == "layers"))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("wing", WINGS)
def test_rule_holds(wing: str, rule: rules.Rule) -> None:
    sources = read_sources(wing)
    assert sources, f"no sources found below {wing}"
    assert [f"{one.module}: {broken}" for one in sources for broken in rule(one)] == []


@pytest.mark.parametrize("rule", rules.RULES_FOR_TESTS, ids=lambda rule: rule.__name__)
def test_rule_holds_in_tests(rule: rules.Rule) -> None:
    sources = [one for one in read_sources("tests") if not one.module.startswith(HOUSE)]
    assert [f"{one.module}: {broken}" for one in sources for broken in rule(one)] == []


def test_there_is_no_import_cycle() -> None:
    assert imports.find_cycle(imports.build_graph(one for wing in WINGS for one in read_sources(wing))) == []


def test_what_a_requester_needs_loads_on_macos_and_windows_too() -> None:
    sources = {one.module: one for wing in WINGS for one in read_sources(wing)}
    needed = imports.find_reachable(imports.build_graph(sources.values()), PORTABLE)
    assert [f"{name}: {broken}" for name in sorted(needed) for broken in rules.find_unportable(sources[name])] == []


def test_each_package_of_two_levels_stands_in_the_layers() -> None:
    modules = [one.module for wing in WINGS for one in read_sources(wing)]
    assert imports.find_unlayered(modules, read_layers()) == []


def test_no_file_holds_a_registry_or_a_private_path() -> None:
    found = []
    for path in list_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {broken}" for broken in texts.find_forbidden_text(text)]
    assert found == []


def test_each_shell_has_a_reason_and_a_place_in_the_layers() -> None:
    assert imports.find_unlayered(rules.SHELLS, read_layers()) == []
    assert all(len(reason) >= 8 for reason in rules.SHELLS.values())
