"""Signs of life: what the demo does just now, said again where nothing else was said for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from requester.demo.screen import Screen

BEAT_SECONDS = 1.0
"""How often it is looked whether something was said: nobody waits twice as long without a word."""


class Beat:
    """What goes on on a screen: `tell` says it, and while `run` runs it is said again, with its age, after silence."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._what = ""
        self._age = 0.0

    def tell(self, what: str) -> None:
        """Something new goes on, which is said at once."""
        self.note(what)
        self._screen.say(f"{what} …")

    def note(self, what: str) -> None:
        """Something goes on that others say."""
        if what != self._what:
            self._what, self._age = what, 0.0

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            before = self._screen.said
            await asyncio.sleep(BEAT_SECONDS)
            self._age += BEAT_SECONDS
            if self._what and self._screen.said == before:
                self._show()

    def _show(self) -> None:
        line = f"  … {self._what} ({self._age:.0f} s)"
        if self._screen.is_live:
            self._screen.draw([line])
        else:
            self._screen.say(line)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While inside, `run`; no frame is left behind."""
        task = asyncio.ensure_future(self.run())
        try:
            yield
        finally:
            task.cancel()
            self._screen.draw([])
