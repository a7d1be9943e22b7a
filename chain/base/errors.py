"""The root of every error of the project, sorted by whom to blame.

A leaf names the rule that was broken in `rule`, carries the facts as attributes and says in its message what to do.
Code decides by class
and by `rule`, never by the text of a message.
"""

from __future__ import annotations


class TallyError(Exception):
    """Root of all errors that this project raises on purpose.

    `rule` is a short stable name (`codec.trailing`, `R2.cap`, …) that machines may match on.
    """

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.message} [{self.rule}]"


class Refused(TallyError):
    """Theirs: what somebody sent breaks a rule. Nothing was changed."""


class Fault(TallyError):
    """Ours: an invariant of our own does not hold. Stop rather than go on."""


class Unavailable(TallyError):
    """The world's: a part, a disk or a network does not answer. Trying again later may help."""
