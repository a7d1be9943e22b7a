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
    from requester.client import AsyncMarket, JobEnded, JobFailed, JobResult, Market, NoBid

__all__ = ["AsyncMarket", "JobEnded", "JobFailed", "JobResult", "Market", "NoBid"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("requester.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
