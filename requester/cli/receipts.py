"""`tally receipt`: what both sides signed about a job, and every check of it again, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused
from chain.base.hashing import show_digest
from chain.base.keys import show_key
from chain.base.units import format_credits
from chain.ledger.genesis import Genesis
from chain.ledger.terms.work import SegmentRecord
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices, pass_job
from requester.client.costs import read_cost
from requester.client.results import measure_blobs
from requester.client.settings import get_folder, load_genesis
from requester.client.texts import escape_line, show_size, show_span
from requester.purchase.checking import Verdict
from requester.purchase.documents import Documents, LeasePapers
from requester.purchase.verify import is_verified, verify_job
from requester.store.jobs import JobStore


@click.command(
    epilog="""\b
Examples:
  tally receipt 3f2a
  tally receipt 3f2a --verify --genesis genesis.json
"""
)
@pass_job
@click.option("--verify", is_flag=True, help="Check everything again, with nothing but the genesis file.")
@click.option("--genesis", type=click.Path(path_type=Path), help="The chain's genesis file.")
@json_flag
@pass_choices
def receipt(choices: Choices, job: str, verify: bool, genesis: Path | None) -> int:
    """Show the receipts of JOB, one for each lease; with --verify check everything offline."""
    store = JobStore(get_folder())
    try:
        row = store.find(job)
        documents = store.load_documents(row.id)
        records = store.load_records(row.id, documents)
        members = describe(documents, records) | {"job": row.id.hex(), "phase": row.phase}
        at_hand = measure_blobs(store.blobs, documents, records) if verify else None
    finally:
        store.blobs.close()
        store.close()
    verdicts = verify_job(documents, records, at_hand, _load_genesis(choices, genesis)) if at_hand else []
    passed = not verify or is_verified(verdicts)
    if choices.as_json:
        output.print_json(**members, verified=passed if verify else None, checks=_describe_verdicts(verdicts))
    else:
        _print(members, verdicts)
        if verify:
            click.echo("verified" if passed else "NOT verified")
    return output.OK if passed else output.REFUSED


def describe(documents: Documents, records: Mapping[bytes, Sequence[SegmentRecord]]) -> dict[str, Any]:
    """What the receipts say, as plain members; raises `Refused` under `receipt.none` where there is none yet."""
    leases = [
        _describe_lease(papers, records.get(papers.lease, ()))
        for papers in documents.leases
        if papers.receipt is not None
    ]
    if not leases:
        raise Refused("the job has no receipt (yet); see `tally jobs`", rule="receipt.none")
    cost = read_cost(documents)
    return {
        "segments": documents.order.body.segments,
        "leases": leases,
        "cost": cost.total,
        "commission": cost.commission,
        "settled": cost.settled,
    }


def _describe_lease(papers: LeasePapers, records: Sequence[SegmentRecord]) -> dict[str, Any]:
    assert papers.receipt is not None
    body = papers.receipt.body
    return {
        "lease": body.lease.hex(),
        "provider": show_key(body.provider),
        "first": body.first,
        "segments": body.count,
        "price": papers.award.body.price,
        "cause": body.cause.value,
        "records": show_digest(body.records),
        "output": show_digest(records[-1].output) if records else "",
        "log": show_digest(body.log),
        "provenance": show_digest(body.provenance),
        "cpu_ms": body.usage.cpu_ms,
        "wall_ms": body.usage.wall_ms,
        "peak_bytes": body.usage.peak_bytes,
        "level": body.environment.level,
        "state": "" if papers.seen is None else papers.seen.state,
        "accepted": papers.acceptance is not None,
    }


def _load_genesis(choices: Choices, named: Path | None) -> Genesis:
    path = named or choices.load().genesis_path
    if path is None:
        raise Refused("name the chain's genesis file by --genesis, or in `tally init --genesis`", rule="genesis.file")
    return load_genesis(path)


def _describe_verdicts(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "number": one.number,
            "name": one.name,
            "lease": one.lease,
            "passed": one.passed,
            "skipped": one.skipped,
        }
        for one in verdicts
    ]


def _print(members: dict[str, Any], verdicts: list[Verdict]) -> None:
    cost, commission = format_credits(members["cost"]), format_credits(members["commission"])
    rows: list[tuple[str, Any]] = [
        ("job", members["job"]),
        ("phase", members["phase"]),
        ("segments", members["segments"]),
        ("cost", f"{cost} credits, commission {commission}"),
        ("settled", members["settled"]),
    ]
    for lease in members["leases"]:
        rows += [("", ""), *lease.items()]
    for name, value in rows:
        click.echo(f"{NAMES.get(name, name):<12} {_show(name, value)}".rstrip())
    for one in verdicts:
        mark = "ok" if one.passed else "skipped" if one.skipped else "FAILED"
        lease = "" if one.lease is None else f"lease {one.lease + 1}, "
        click.echo(f"{one.number:>3} {mark:<7} {lease}{one.name}: {one.text}")


NAMES = {"peak_bytes": "peak memory", "cpu_ms": "cpu time", "wall_ms": "wall time"}


def _show(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "price":
        return f"{format_credits(value)} credits per segment"
    if name == "peak_bytes":
        return show_size(value)
    return show_span(value) if name in NAMES else escape_line(str(value))
