"""The client library: `Market` (and `AsyncMarket`) signs orders, watches them, checks what comes back, pays.

What is named here is loaded when it is first used: whoever imports a submodule pays for that one alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requester.client.board import LeaseProgress, Progress
    from requester.client.buying import Estimated
    from requester.client.data import load
    from requester.client.handles import AsyncJobHandle
    from requester.client.market import AsyncMarket
    from requester.client.news import Hooks, News, NewsKind
    from requester.client.outcomes import JobEnded, JobFailed, JobPending, NoBid
    from requester.client.results import JobResult, MapResult, TrainResult
    from requester.client.settings import RequesterSettings, load_requester_settings
    from requester.client.sync import JobHandle, Market
    from requester.client.wishes import Wishes

_PLACES = {
    "board": ("LeaseProgress", "Progress"),
    "buying": ("Estimated",),
    "data": ("load",),
    "handles": ("AsyncJobHandle",),
    "market": ("AsyncMarket",),
    "news": ("Hooks", "News", "NewsKind"),
    "outcomes": ("JobEnded", "JobFailed", "JobPending", "NoBid"),
    "results": ("JobResult", "MapResult", "TrainResult"),
    "settings": ("RequesterSettings", "load_requester_settings"),
    "sync": ("JobHandle", "Market"),
    "wishes": ("Wishes",),
}
"""Which module has which name."""

_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AsyncJobHandle",
    "AsyncMarket",
    "Estimated",
    "Hooks",
    "JobEnded",
    "JobFailed",
    "JobHandle",
    "JobPending",
    "JobResult",
    "LeaseProgress",
    "MapResult",
    "Market",
    "News",
    "NewsKind",
    "NoBid",
    "Progress",
    "RequesterSettings",
    "TrainResult",
    "Wishes",
    "load",
    "load_requester_settings",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"requester.client.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
