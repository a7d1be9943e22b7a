"""A job of many segments: how far gradient descent comes at each learning rate. Buy it with

    tally map examples/search_rates.py examples/rates.json --cap 1

Each rate is an item of its own, served by whichever provider is free, and paid by itself.
"""

import numpy as np


def score(rate: float) -> dict[str, float]:
    """The loss after 50 steps on a bowl of ten dimensions."""
    place, steep = np.ones(10), np.linspace(0.1, 2, 10)
    for _ in range(50):
        place = place - rate * steep * place
    return {"rate": rate, "loss": float(steep @ place**2)}
