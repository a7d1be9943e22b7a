"""Set-up: the lock is complete and hashed; skips fail where they must; contracts bite; a fresh clone works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {"lock": ("demo", "dev"), "sandbox": ("sandbox",), "bus": ("bus",)}


def read_project() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def list_wanted(lock: str) -> set[str]:
    """The names that pyproject.toml asks for and this lock must hold."""
    project = read_project()
    extras = project["project"]["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [one for extra in LOCKS[lock] for one in extras[extra]]
    if lock == "lock":
        wanted += [*project["project"]["dependencies"], *project["build-system"]["requires"]]  # type: ignore[misc]  # TOML
    return {re.split(r"[<>=;\s]", one)[0].lower() for one in wanted}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TALLY_", "MAKE", "MFLAGS"))
    }
    return subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_holds_all_that_is_asked_for_by_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    entries = [one for one in re.split(r"\n(?=\S)", text.strip()) if one]
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), f"not one pinned package: {entry.splitlines()[0]}"
        assert "--hash=sha256:" in entry, f"no hash: {entry.splitlines()[0]}"
    assert list_wanted(name) <= {entry.partition("==")[0] for entry in entries}


NO_PYTHON = "#!/bin/sh\necho not installed >&2; exit 127\n"  # as a version manager leaves a name: only to say so
NO_VENV = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\n'  # as a distribution splits it
# what python3.12 and python3 are, what set-up says
BARE_MACHINES = [
    (None, None, "no Python 3.11 or newer"),
    (NO_PYTHON, NO_PYTHON, "no Python 3.11 or newer"),
    (NO_PYTHON, NO_VENV, "python3 lacks venv and ensurepip"),
]


@pytest.mark.parametrize(("versioned", "plain", "said"), BARE_MACHINES)
def test_set_up_says_in_one_line_what_is_missing(
    tmp_path: Path, versioned: str | None, plain: str | None, said: str
) -> None:
    shutil.copytree(ROOT / "setup", tmp_path / "setup")
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "dirname").symlink_to(shutil.which("dirname") or "dirname")
    for name, text in {"python3.12": versioned, "python3": plain, "id": "#!/bin/sh\necho 1000\n"}.items():
        if text:
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
    done = run("/bin/sh", tmp_path / "setup" / "setup.sh", cwd=tmp_path, PATH=str(stubs), PYTHON="")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


SKIPS = """
import pytest
def test_excused():
    pytest.skip("kernel: user namespaces are forbidden")
def test_not_excused():
    pytest.skip("mosquitto is not installed")
@pytest.mark.skipif(True, reason="no bubblewrap")
def test_marked(): ...
@pytest.mark.xfail(reason="known")
def test_expected():
    assert False
"""


@pytest.mark.parametrize(("ci", "failed"), [("true", 2), ("", 0)])
def test_a_skip_fails_where_ci_is_set(tmp_path: Path, ci: str, failed: int) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('kernel: none', allow_module_level=True)\n")
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=tmp_path, CI=ci)
    assert ("test_not_excused" in done.stdout, "test_marked" in done.stdout) == (bool(failed), bool(failed)), (
        done.stdout
    )
    assert ("2 skipped" if failed else "4 skipped") in done.stdout, done.stdout
    assert "1 xfailed" in done.stdout
    assert "run again with TALLY_SEED=" in done.stdout


def test_a_seed_gives_the_same_chance_again(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_seed.py").write_text(
        "import random\ndef test_a(seed):\n    print('drew', seed, random.random())\n"
    )
    draws = [
        re.findall("drew .*", run(sys.executable, "-m", "pytest", "-s", "-q", ".", cwd=tmp_path, TALLY_SEED=one).stdout)
        for one in ("5", "5", "6")
    ]
    assert draws[0]
    assert draws[0] == draws[1] != draws[2]


# contract, file, import that breaks it
BREACHES = [
    ("layers", "chain/base/a.py", "import chain.ledger.a"),
    ("layers", "broker/auction/a.py", "from broker.bus import a"),
    ("independent", "provider/work/a.py", "import requester.purchase.a"),
    ("served", "broker/service/a.py", "import chain.node.a"),
    ("demo", "requester/demo/a.py", "import chain.store.a"),
    ("pure", "chain/ledger/a.py", "import chain.runtime.a"),
    ("pure", "broker/auction/a.py", "def f():\n    from time import time"),
    ("pure", "requester/purchase/a.py", "import asyncio.queues"),
]
HOUSE = (
    "chain/base", "chain/runtime", "chain/ledger", "chain/store", "chain/node",
    "broker/auction", "broker/bus", "broker/service", "provider/work",
    "requester/purchase", "requester/client", "requester/demo",
)  # fmt: skip


def build_house(folder: Path) -> Path:
    """A project with our contracts, some packages of each wing with one empty module, and the rest missing."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "setup", folder / "setup", ignore=shutil.ignore_patterns("__pycache__"))
    for place in HOUSE:
        (folder / place).mkdir(parents=True)
        for name in (folder / place).parent, folder / place:
            (name / "__init__.py").touch()
        (folder / place / "a.py").touch()
    return folder


def run_contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", cwd=folder)


def test_contracts_are_kept_while_parts_are_missing(tmp_path: Path) -> None:
    done = run_contracts(build_house(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("contract", "place", "line"), BREACHES)
def test_contract_bites(tmp_path: Path, contract: str, place: str, line: str) -> None:
    (build_house(tmp_path) / place).write_text(line + "\n")
    done = run_contracts(tmp_path)
    contracts = read_project()["tool"]["importlinter"]["contracts"]  # type: ignore[index]  # plain data from TOML
    name = next(one["name"] for one in contracts if one["id"] == contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{name} BROKEN" in " ".join(done.stdout.split())


@pytest.mark.check
@pytest.mark.timeout(600)
def test_a_fresh_clone_sets_itself_up(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    assert run("git", "clone", "-q", "--no-hardlinks", ROOT, clone, cwd=tmp_path).returncode == 0
    first, second = run("make", "setup", cwd=clone), run("make", "setup", cwd=clone)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "nothing to do" in second.stdout
    for part in ("sandbox: ", "bus: "):
        assert sum(part in line for line in first.stdout.splitlines()) == 1
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""


@pytest.mark.check
@pytest.mark.timeout(300)
def test_the_wheel_holds_every_package_and_builds_without_a_network(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    assert run("git", "clone", "-q", "--no-hardlinks", ROOT, clone, cwd=tmp_path).returncode == 0
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    done = run(*pip, "-w", tmp_path, clone, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("tallystick-*.whl"))) as wheel:
        packed = set(wheel.namelist())
    wings = ("chain", "broker", "provider", "requester")
    ours = run("git", "ls-files", *wings, cwd=clone).stdout.split()
    assert {name for name in ours if name.endswith((".py", ".typed"))} <= packed
    assert {name.partition("/")[0] for name in packed if ".dist-info" not in name} == set(wings)
