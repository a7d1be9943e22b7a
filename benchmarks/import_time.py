"""How long `import requester` takes, and `import requester.client`, each in a fresh interpreter: the median of 15.

Measured inside the interpreter, so that its own start does not count. `import_requester_market` is what the first use
of `requester.Market` costs.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.figures import Figure, compute_percentile

RUNS = 15

STATEMENTS = {
    "import_requester": "import requester",
    "import_requester_client": "import requester.client",
    "import_requester_market": "from requester import Market",
}
AIMS = {"import_requester": 200.0}


async def measure() -> dict[str, Figure]:
    """Milliseconds by statement."""
    found = {}
    for name, statement in STATEMENTS.items():
        times = [time_statement(statement) for _ in range(RUNS)]
        found[name] = Figure(compute_percentile(times, 0.5), "ms", aim=AIMS.get(name))
    return found


def time_statement(statement: str) -> float:
    """Milliseconds of one statement in an interpreter of its own."""
    code = f"import time\nbegun = time.perf_counter()\n{statement}\nprint((time.perf_counter() - begun) * 1_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
