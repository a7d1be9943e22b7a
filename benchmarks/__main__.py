"""`python -m benchmarks [--only NAME] [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys

from benchmarks import blob_transfer, import_time, job_transfer, map_segments, noop_run, sandbox_start, segments
from benchmarks.figures import Figure

BENCHMARKS = {
    "noop_run": noop_run.measure,
    "map_segments": map_segments.measure,
    "segments": segments.measure,
    "sandbox_start": sandbox_start.measure,
    "blob_transfer": blob_transfer.measure,
    "job_transfer": job_transfer.measure,
    "import_time": import_time.measure,
}
"""Each measures some figures; their names begin with the benchmark's, or as `PREFIXES` says."""

PREFIXES = {"import_time": "import"}


def describe_settings() -> dict[str, str]:
    """What the figures depend on."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        "revision": (revision.stdout.strip() or "unknown") + ("+changes" if changed.stdout.strip() else ""),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "settings": "one chain node, one broker, two or three providers, defaults",
    }


def choose(only: str | None) -> list[str]:
    """The benchmarks that are meant: all, the one of this name, or the one of the figure of this name."""
    return [name for name in BENCHMARKS if only is None or only.startswith(PREFIXES.get(name, name))]


def main() -> int:
    """Measure and print; exit code 1 if a limit is not kept."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}, or one figure of it")
    parser.add_argument("--json", action="store_true", help="one JSON object: name -> value, unit, aim, limit, met")
    choices = parser.parse_args()
    chosen = choose(choices.only)
    if not chosen:
        parser.error(f"no benchmark {choices.only!r}; there are {', '.join(BENCHMARKS)}")
    out = sys.stderr if choices.json else sys.stdout
    print("  ".join(f"{name} {value}" for name, value in describe_settings().items()), file=out, flush=True)
    figures: dict[str, Figure] = {}
    for name in chosen:
        figures |= asyncio.run(BENCHMARKS[name]())
    if choices.only in figures:
        figures = {choices.only: figures[choices.only]}
    for name, figure in figures.items():
        print(f"{name:<27} {figure.to_text()}", file=out)
    if choices.json:
        print(json.dumps({name: figure.to_json() for name, figure in figures.items()}, allow_nan=False))
    return 1 if any(figure.met is False for figure in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
