"""Renews the hashed lock files in requirements/ from pyproject.toml, for every platform and every Python from 3.11 on.

`lock.txt` holds what every set-up needs, the build backend included; `sandbox.txt` and `bus.txt` what stands in for
a missing system program. No index address goes into them: which index is asked is for each machine's own settings.
"""

from __future__ import annotations

import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade -q"
)


def main() -> None:
    """Writes the three lock files; uv lives in a temporary environment only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = {
        "lock": project["project"]["dependencies"]
        + extras["demo"]
        + extras["dev"]
        + project["build-system"]["requires"],
        "sandbox": extras["sandbox"],
        "bus": extras["bus"],
    }
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        bin_folder = Path(folder) / "bin"
        subprocess.run([bin_folder / "python", "-m", "pip", "install", "-qq", "uv"], check=True)
        for name, requirements in wanted.items():
            output = ROOT / "requirements" / f"{name}.txt"
            command: list[str | Path] = [bin_folder / "uv", "pip", "compile", *OPTIONS.split(), "-", "-o", output]
            subprocess.run(command, input="\n".join(requirements), text=True, check=True, stdout=subprocess.DEVNULL)
            print(f"lock: wrote {output.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
