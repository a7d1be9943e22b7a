"""Limits and price of a job, as wishes: what becomes of them in its spec and in its terms."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec

from broker.protocol.jobs import JobSpec, Level, Runtime
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.base.units import parse_credits
from chain.ledger.terms.agreement import Kind
from requester.client.packing import Work
from requester.client.texts import parse_size, parse_span
from requester.purchase.order import DEFAULT_WINDOWS, Terms, make_resources

PARALLELISM = 4
"""Among how many providers at a time a `map` is divided at most, where nothing else is wished."""

ANY_CAP = 1_000_000
"""Credits that stand for a cap in an estimate, where nobody has named one yet."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and price of a job. `cap` in credits (text, int or float) or None to be told to name one; `memory` and
    `output` in bytes or as `512MiB`; `wall` in seconds or as `10min`, and so `acceptance`: how long after delivery your
    silence accepts; `within`: how long after signing the work is done at the latest, which is the time it may wait
    behind other jobs (None: an hour, for longer jobs twice the least they need); `auction`: how long after signing bids
    are waited for at most, when somebody is silent or all are busy; `packages` are those the job imports,
    to which pandas or pyarrow is added where its inputs hold their tables.

    `memory`, `wall`, `cores` and `output` are limits of one segment; `cap` is for all of them. A `map` is divided among
    at most `parallelism` providers at a time (None: four). Up to `tolerance` of its items may fail: the others are
    done, and there is a result with None in the places of the failed ones. Once more have failed, what lies behind a
    failed one is not offered again, and the job fails.
    """

    cap: str | float | None = None
    memory: int | str = "512MiB"
    wall: float | str = 300
    acceptance: float | str = 600
    within: float | str | None = None
    auction: float | str = 2
    cores: float = 1
    output: int | str = "64MiB"
    packages: tuple[str, ...] = ("numpy",)
    level: str = "ns"
    seed: int = 0
    title: str = ""
    python: str = ""
    parallelism: int | None = None
    tolerance: int = 0

    def make_terms(self, commission: int, segments: int = 1, item_root: bytes | None = None) -> Terms:
        """Terms at this broker's commission in basis points. Raises `Refused`: `cap.missing`, `units.credits`, …"""
        if self.cap is None:
            raise Refused("name the most the job may cost: --cap CREDITS, or cap=… in Python", rule="cap.missing")
        amount = f"{self.cap:.6f}" if isinstance(self.cap, float) else str(self.cap)
        return Terms(
            cap=parse_credits(amount),
            segment_wall=parse_span(self.wall),
            segments=segments,
            item_root=item_root,
            commission=commission,
            windows=msgspec.structs.replace(DEFAULT_WINDOWS, acceptance=parse_span(self.acceptance)),
            auction=parse_span(self.auction),
            within=None if self.within is None else parse_span(self.within),
        )


def make_spec(work: Work, wishes: Wishes) -> JobSpec:
    """The job spec. Raises `Refused` under `spec.cores`, `spec.limit` for a limit under which no job can run, or
    `spec.form` for wishes outside what a spec can say.
    """
    if not 0.001 <= wishes.cores < math.inf:
        raise Refused(f"cores {wishes.cores:g} is no number of cores; write for example 1 or 0.5", rule="spec.cores")
    wall = parse_span(wishes.wall)
    _check_limits(wishes, wall)
    try:
        resources = make_resources(
            parse_size(wishes.memory),
            wall,
            millicores=round(wishes.cores * 1_000),
            output_bytes=parse_size(wishes.output),
        )
        spec = JobSpec(
            title=(wishes.title or work.code.title)[:200],
            kind=work.kind,
            entry=work.code.entry,
            function=work.code.function,
            code=compute_digest(work.code.blob),
            code_bytes=len(work.code.blob),
            inputs=work.inputs.digest,
            input_bytes=work.inputs.size,
            runtime=Runtime(wishes.python or get_python(), tuple(sorted({*wishes.packages, *work.packages}))),
            resources=resources,
            level=Level(wishes.level),
            seed=wishes.seed,
            parallelism=_find_parallelism(work, wishes),
            tolerance=wishes.tolerance,
        )
        return msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=JobSpec)
    except (ValueError, msgspec.ValidationError) as error:
        raise Refused(f"no job can be described so: {error}", rule="spec.form") from error


def _check_limits(wishes: Wishes, wall: int) -> None:
    """A job that may use nothing of something fails at once, and is paid: say so before it is signed."""
    limits = (
        ("wall", wall, wishes.wall, "5min"),
        ("memory", parse_size(wishes.memory), wishes.memory, "512MiB"),
        ("output", parse_size(wishes.output), wishes.output, "64MiB"),
    )
    for name, value, given, example in limits:
        if value <= 0:
            message = (
                f"{name} {given} leaves the job nothing, so it would fail and be paid; write for example {example}"
            )
            raise Refused(message, rule="spec.limit")


def _find_parallelism(work: Work, wishes: Wishes) -> int:
    """A `map` of one item, and every other kind, has one provider at a time."""
    if wishes.parallelism is not None:
        return wishes.parallelism
    return min(PARALLELISM, work.segments) if work.kind is Kind.MAP else 1


def split_wishes(wishes: Wishes | None, given: dict[str, Any]) -> tuple[Wishes, dict[str, Any]]:
    """(wishes, other keyword arguments). Wishes that are None are as if not given. Raises `Refused` (`spec.form`)."""
    names = set(Wishes.__struct_fields__)
    wanted = {name: value for name, value in given.items() if name in names and value is not None}
    rest = {name: value for name, value in given.items() if name not in names}
    try:
        changed = msgspec.structs.replace(wishes or Wishes(), **wanted)
        return msgspec.convert(msgspec.structs.asdict(changed), Wishes), rest
    except msgspec.ValidationError as error:
        raise Refused(f"wishes: {error}", rule="spec.form") from error


def take_wishes(wishes: Wishes | None, given: dict[str, Any]) -> Wishes:
    """Wishes from keyword arguments, all of which have to be some. Raises `Refused` under `spec.form`."""
    wanted, rest = split_wishes(wishes, given)
    if rest:
        names = ", ".join(Wishes.__struct_fields__)
        raise Refused(f"there is no wish {', '.join(sorted(rest))}; there are {names}", rule="spec.form")
    return wanted


def get_python() -> str:
    """The Python minor version that runs this, which is the one a cloudpickled function needs."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
