"""A job of chained segments: each step goes on from the state that the one before left. Buy it with

    tally train examples/descend.py --state '{"place": [1.0, 2.0], "rate": 0.3}' --steps 10 --cap 1

`tally watch JOB` shows the loss while it runs.
"""

from typing import Any

from broker.protocol.reporting import report


def step(state: dict[str, Any], index: int) -> dict[str, Any]:
    """One step down a bowl."""
    place = [x - state["rate"] * 2 * x for x in state["place"]]
    report(loss=sum(x * x for x in place))
    return {**state, "place": place}
