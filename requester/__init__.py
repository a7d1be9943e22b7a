"""The requester wing: the purchase machine, its store, the client library, the `tally` command, and the local demo.

    from requester import Market

    with Market.connect() as market:
        print(market.run(sum, [1, 2, 3], cap=1).value)

What is named here is loaded when it is first used, so that `import requester` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.protocol.reporting import report
    from requester.client.data import load
    from requester.client.handles import AsyncJobHandle
    from requester.client.market import AsyncMarket
    from requester.client.news import Hooks, News
    from requester.client.outcomes import JobEnded, JobFailed, NoBid
    from requester.client.results import JobResult, MapResult, TrainResult
    from requester.client.sync import JobHandle, Market
    from requester.client.wishes import Wishes

__all__ = [
    "AsyncJobHandle",
    "AsyncMarket",
    "Hooks",
    "JobEnded",
    "JobFailed",
    "JobHandle",
    "JobResult",
    "MapResult",
    "Market",
    "News",
    "NoBid",
    "TrainResult",
    "Wishes",
    "load",
    "report",
]


def __getattr__(name: str) -> Any:
    if name == "report":
        return importlib.import_module("broker.protocol.reporting").report
    if name in __all__:
        return getattr(importlib.import_module("requester.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
