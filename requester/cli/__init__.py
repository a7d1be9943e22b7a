"""The `tally` command."""

from __future__ import annotations

from requester.cli.app import main

__all__ = ["main"]
