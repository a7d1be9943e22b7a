"""Every code example of the client library's docstrings and of the README, and how one is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requester
from requester import AsyncJobHandle, AsyncMarket, JobHandle, Market, load

ROOT = Path(__file__).resolve().parents[2]
HOLDERS = (Market, AsyncMarket, JobHandle, AsyncJobHandle)


@dataclass(frozen=True)
class Example:
    """Code that stands in `place`."""

    place: str
    code: str

    @property
    def awaits(self) -> bool:
        """Whether it is for a coroutine."""
        tree = compile(self.code, self.place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        kinds = (ast.Await, ast.AsyncFor, ast.AsyncWith)
        return any(isinstance(node, kinds) for node in ast.walk(tree))

    def run(self, market: Market) -> None:
        """As in a notebook, where `market` is open."""
        exec(compile(self.code, self.place, "exec"), {"__name__": "__main__", "market": market, "Market": Market})

    async def run_async(self, market: AsyncMarket) -> None:
        """The same in a coroutine."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        names: dict[str, Any] = {"__name__": "__main__", "market": market, "AsyncMarket": AsyncMarket}
        found = eval(compile(self.code, self.place, "exec", flags), names)
        if found is not None:
            await found


def list_examples() -> list[Example]:
    """All of them, in order."""
    found = [*_read("requester", requester.__doc__), *_read("load", load.__doc__)]
    for holder in HOLDERS:
        found += _read(holder.__name__, holder.__doc__)
        for name in vars(holder):
            if not name.startswith("_"):
                found += _read(f"{holder.__name__}.{name}", getattr(holder, name).__doc__)
    text = (ROOT / "README.md").read_text("utf-8")
    found += [Example("README.md", code) for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)]
    return found


def _read(place: str, text: str | None) -> Iterator[Example]:
    """The blocks of a docstring that are indented deeper than its closing quotes, and that are code."""
    lines = (text or "").splitlines()
    margin = len(lines[-1]) if lines and not lines[-1].strip() else 0
    block: list[str] = []
    for line in [*lines[1:], "end"]:
        if line.startswith(" " * (margin + 4)) or (not line.strip() and block):
            block.append(line[margin + 4 :])
        elif block:
            code = "\n".join(block).strip() + "\n"
            block = []
            if re.search(r"\bprint\(|\bmarket\b", code):
                yield Example(place, code)
