"""How a list of numbered checks is run: in order, cheap and certain ones first, the first failure named by its number.

A check is a row: number, name, what it says, and a predicate over the facts. Not here: the rows (`checks`, `verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_signed_bytes
from chain.base.keys import Signed, is_signature

FactsT = TypeVar("FactsT")


class CheckFailed(Refused):
    """What came back is not what was agreed. `number` and `name` tell which check failed; rule is `check.<number>`."""

    def __init__(self, number: int, name: str, text: str) -> None:
        super().__init__(f"check {number} ({name}) failed: {text}", rule=f"check.{number}")
        self.number = number
        self.name = name


@dataclass(frozen=True)
class Check(Generic[FactsT]):
    """One row. `text` is a sentence that holds where the check passes."""

    number: int
    name: str
    text: str
    holds: Callable[[FactsT], bool]


@dataclass(frozen=True)
class Verdict:
    """How one check came out. `skipped` where an earlier failure left it without ground to stand on."""

    number: int
    name: str
    text: str
    passed: bool
    skipped: bool = False


def require(checks: Iterable[Check[FactsT]], facts: FactsT) -> None:
    """Raise `CheckFailed` for the first check that does not hold."""
    for check in checks:
        if not check.holds(facts):
            raise CheckFailed(check.number, check.name, f"it is not so that {check.text}")


def judge(checks: Sequence[Check[FactsT]], facts: FactsT | None) -> list[Verdict]:
    """All verdicts; what follows a failure is skipped. Without facts (a document is missing) the first check fails."""
    verdicts: list[Verdict] = []
    failed = False
    for check in checks:
        passed = not failed and facts is not None and check.holds(facts)
        verdicts.append(Verdict(check.number, check.name, check.text, passed, skipped=failed))
        failed = failed or not passed
    return verdicts


def is_signed_by(signed: Signed[Any], tag: Tag, chain: bytes, key: bytes) -> bool:
    """Whether `key` signed the body under `tag` on this chain."""
    return is_signature(key, compute_signed_bytes(tag, chain, signed.body), signed.signature)
