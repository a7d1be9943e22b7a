"""The two ways in which a job value is refused: what can't be packed, and bytes that are no packed value.

Imports nothing of the project, because a copy runs inside the sandbox.
"""

from __future__ import annotations

__all__ = ["BadValue", "CannotCarry", "MissingPackage"]


class CannotCarry(TypeError):
    """A value holds something that has no form as plain bytes. The message names its type and its place; `path` and
    `kind` hold them.
    """

    def __init__(self, path: str, kind: str, advice: str) -> None:
        article = "an" if kind[:1] in "aeiou" else "a"
        super().__init__(f"{path}: {article} {kind} can't be carried; {advice}")
        self.path = path
        self.kind = kind


class BadValue(ValueError):
    """Bytes that are not a packed value, or pass a limit. Nothing of them was executed."""


class MissingPackage(BadValue):
    """A good value that can't be read here: it holds a table of a `package` that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"this value holds a table of {package}, which is not installed here: pip install {package}")
        self.package = package
