"""Where the demo shows itself: a picture redrawn in place on a terminal, plain lines everywhere else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from typing import TextIO

UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[{}A", "\x1b[2K", "\x1b[J"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Screen:
    """Writes to `out`; `said` counts what stays. `is_live` says whether it redraws; a frame never holds more lines or
    columns than there are, so that the cursor goes back to where the frame began.
    """

    def __init__(self, out: TextIO, is_live: bool) -> None:
        self.is_live = is_live
        self.said = 0
        self._out = out
        self._height = 0

    def say(self, line: str) -> None:
        """A line that stays; on a live screen above the frame, which is drawn anew afterwards."""
        self.said += 1
        self._out.write(f"{self._go_back()}{line}\n")
        self._out.flush()

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the frame; nothing where the screen is not live."""
        if not self.is_live:
            return
        width, height = shutil.get_terminal_size()
        shown = [_CONTROL.sub("?", line)[: width - 1] for line in lines[: height - 1]]
        self._out.write(self._go_back() + "".join(f"{CLEAR_LINE}{line}\n" for line in shown))
        self._out.flush()
        self._height = len(shown)

    def leave(self) -> None:
        """Let the last frame stand; what comes next is written below it."""
        self._height = 0

    def _go_back(self) -> str:
        """To the beginning of the frame, with nothing left of it."""
        height, self._height = self._height, 0
        return f"{UP.format(height)}\r{CLEAR_BELOW}" if height else ""


def make_sayer(screen: Screen, keep: Callable[[str], None]) -> Callable[[str], None]:
    """How lines are told: a live screen keeps them for the foot of its frame, another one writes them."""
    return keep if screen.is_live else screen.say
