"""The client library: `Market` (and `AsyncMarket`) signs orders, watches them, checks what comes back, pays."""

from __future__ import annotations

from requester.client.market import AsyncMarket
from requester.client.news import Hooks, News
from requester.client.outcomes import JobEnded, JobFailed, JobPending, JobResult, NoBid
from requester.client.settings import RequesterSettings, load_requester_settings
from requester.client.sync import Market
from requester.client.wishes import Wishes

__all__ = [
    "AsyncMarket",
    "Hooks",
    "JobEnded",
    "JobFailed",
    "JobPending",
    "JobResult",
    "Market",
    "News",
    "NoBid",
    "RequesterSettings",
    "Wishes",
    "load_requester_settings",
]
