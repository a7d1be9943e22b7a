"""How a list of numbered checks is run: in order, cheap and certain ones first, the first failure named by its number.

A check is a row: number, name, what it says, a predicate over the facts, and who is to blame where it fails. Not here:
the rows (`checks`, `deliveries`, `endings`, `verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_signed_bytes
from chain.base.keys import Signed, is_signature

FactsT = TypeVar("FactsT")


class Blame(StrEnum):
    """Who answers for a failure, and so what can still come."""

    SIGNER = "signer"
    """Whoever signed it: nothing that comes later mends it."""

    TELLER = "teller"
    """Whoever told it: it may be bent on the way, and the genuine one may still come."""


class CheckFailed(Refused):
    """What came back is not what was agreed. `number` and `name` tell which check failed; rule is `check.<number>`."""

    def __init__(self, number: int, name: str, text: str, blame: Blame = Blame.SIGNER) -> None:
        super().__init__(f"check {number} ({name}) failed: {text}", rule=f"check.{number}")
        self.number = number
        self.name = name
        self.blame = blame


@dataclass(frozen=True)
class Check(Generic[FactsT]):
    """One row. `text` is a sentence that holds where the check passes."""

    number: int
    name: str
    text: str
    holds: Callable[[FactsT], bool]
    blame: Blame = Blame.SIGNER


@dataclass(frozen=True)
class Verdict:
    """How one check came out. `lease` is the place of the lease it is about among the job's, None for the job itself.
    `skipped` where an earlier failure left it without ground to stand on.
    """

    number: int
    name: str
    text: str
    passed: bool
    skipped: bool = False
    lease: int | None = None


def require(checks: Iterable[Check[FactsT]], facts: FactsT, blame: Blame | None = None) -> None:
    """Raise `CheckFailed` for the first check that does not hold; only of those rows that `blame` answers for, where
    it is given.
    """
    for check in checks:
        if blame in (None, check.blame) and not check.holds(facts):
            raise CheckFailed(check.number, check.name, f"it is not so that {check.text}", check.blame)


def require_told(checks: Sequence[Check[FactsT]], facts: FactsT) -> None:
    """Like `require`, first what whoever told it may have bent, then what its signer answers for: only that order tells
    a provider's fault from a forgery.
    """
    for blame in (Blame.TELLER, Blame.SIGNER):
        require(checks, facts, blame)


def judge(checks: Sequence[Check[FactsT]], facts: FactsT | None, lease: int | None = None) -> list[Verdict]:
    """All verdicts; what follows a failure is skipped. Without facts (a document is missing) the first check fails."""
    verdicts: list[Verdict] = []
    failed = False
    for check in checks:
        passed = not failed and facts is not None and check.holds(facts)
        verdicts.append(Verdict(check.number, check.name, check.text, passed, skipped=failed, lease=lease))
        failed = failed or not passed
    return verdicts


def is_signed_by(signed: Signed[Any], tag: Tag, chain: bytes, key: bytes) -> bool:
    """Whether `key` signed the body under `tag` on this chain."""
    return is_signature(key, compute_signed_bytes(tag, chain, signed.body), signed.signature)
