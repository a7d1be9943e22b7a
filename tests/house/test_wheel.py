"""The wheel in a clean environment, on each Python that the requester side promises: commands, data files, imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.12", "3.13")
COMMANDS = ("tally", "tally-provider", "tally-broker", "tally-chain")

PROBE = """
import importlib, json, sys
from importlib.resources import files
import requester, requester.client
for name in (*requester.__all__, *requester.client.__all__):
    getattr(requester if name in requester.__all__ else requester.client, name)
for name in ("requester.cli.app", "requester.cli.buying", "requester.cli.watching", "requester.purchase.machine",
             "requester.store.cases", "broker.protocol.values", "chain.light.client"):
    importlib.import_module(name)
data = [("requester.cli", "schema.json"), ("requester", "py.typed"), ("chain", "SPEC.md")]
missing = [name for package, name in data if not files(package).joinpath(name).is_file()]
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "missing": missing, "from": requester.__file__}))
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    dropped = ("PYTEST_", "TALLY_", "PYTHON", "MAKE", "MFLAGS", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    home = {"TALLY_HOME": str(cwd / "home")}
    done = subprocess.run(command, cwd=cwd, env=clean | home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@cache
def find_python(version: str) -> str | None:
    """An interpreter of this minor version that works: ours, one on the path, or one that pyenv keeps."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), *map(str, kept)):
        if candidate is None:
            continue
        probe = [candidate, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what is committed; other than the working tree, it has no left-overs."""
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "-q", "--no-hardlinks", ROOT, folder / "clone", cwd=folder)
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index")
    run(*pip, "-w", folder, folder / "clone", cwd=folder)
    return next(folder.glob("tallystick-*.whl"))


@pytest.mark.check
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path, version: str) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"platform: no Python {version} with venv on this machine")
    run(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=tmp_path)
    found = json.loads(run(scripts / "python", "-c", PROBE, cwd=tmp_path).stdout)
    assert (found["python"], found["missing"]) == (version, [])
    assert str(tmp_path) in found["from"], "imported from somewhere else"
    for command in COMMANDS:
        assert "Usage" in run(scripts / command, "--help", cwd=tmp_path).stdout
    assert run(scripts / "tally", "--version", cwd=tmp_path).stdout.startswith("tally, version ")
    schema = json.loads(run(scripts / "tally", "schema", cwd=tmp_path).stdout)
    assert schema["$defs"]["result"]["properties"]["version"] == {"const": 1}
    assert "_TALLY_COMPLETE" in run(scripts / "tally", "completion", "bash", cwd=tmp_path).stdout
    assert json.loads(run(scripts / "tally", "jobs", "--json", cwd=tmp_path).stdout)["jobs"] == []


def test_an_interpreter_that_is_not_there_is_not_found() -> None:
    assert find_python(f"{sys.version_info.major}.{sys.version_info.minor}") == sys.executable
    assert find_python("2.99") is None
