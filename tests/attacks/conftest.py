"""Fixtures of the sandbox's own tests, for attacks from inside a job."""

from __future__ import annotations

from tests.provider.sandbox.conftest import best, image

__all__ = ["best", "image"]
