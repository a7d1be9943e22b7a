"""A mosquitto to test with: the installed one, else Debian's packages unpacked into a folder, not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from broker.bus.server import find_mosquitto

PACKAGES = ("mosquitto", "libmosquitto1", "libcjson1", "libdlt2", "libwrap0", "libcap2", "libsystemd0")


class Mosquitto(NamedTuple):
    """The program and the variables it needs."""

    program: str
    environment: dict[str, str]


def get_mosquitto(folder: Path) -> Mosquitto | None:
    """The program, or None where it can't be had."""
    installed = find_mosquitto()
    if installed:
        return Mosquitto(installed, {})
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    folder.chmod(0o755)
    _run(folder, "apt-get", "download", *PACKAGES)
    for archive in folder.glob("*.deb"):
        _run(folder, "dpkg-deb", "-x", archive.name, "root")
    found = folder / "root" / "usr" / "sbin" / "mosquitto"
    libraries = [str(path) for path in (folder / "root").glob("**/lib/*-linux-gnu")]
    return Mosquitto(str(found), {"LD_LIBRARY_PATH": ":".join(libraries)}) if found.is_file() else None


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=90, check=False)
