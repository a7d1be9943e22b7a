"""A job: estimates pi by throwing darts. Buy it with `tally run examples/estimate_pi.py --cap 1`.

The sandbox seeds NumPy's global generator, so the work can be replayed.
"""

import numpy as np

THROWS = 1_000_000
ROUNDS = 5

hits = 0
for number in range(ROUNDS):
    hits += int((np.square(np.random.random((THROWS, 2))).sum(axis=1) < 1).sum())
    print(f"round {number + 1} of {ROUNDS}: pi is about {4 * hits / (THROWS * (number + 1)):.5f}", flush=True)

result = {"pi": 4 * hits / (THROWS * ROUNDS), "throws": THROWS * ROUNDS}
