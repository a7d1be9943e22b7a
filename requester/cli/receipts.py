"""`tally receipt`: what both sides signed about a job, and every check of it again, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused
from chain.base.hashing import show_digest
from chain.base.keys import show_key
from chain.base.units import format_credits
from chain.ledger.genesis import Genesis
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.client.outcomes import read_cost
from requester.client.settings import get_folder, load_genesis
from requester.client.texts import escape_line, show_size, show_span
from requester.purchase.checking import Verdict
from requester.purchase.documents import Documents
from requester.purchase.verify import is_verified, verify_job
from requester.store.jobs import JobStore


@click.command()
@click.argument("job")
@click.option("--verify", is_flag=True, help="Check everything again, with nothing but the genesis file.")
@click.option("--genesis", type=click.Path(path_type=Path), help="The chain's genesis file.")
@json_flag
@pass_choices
def receipt(choices: Choices, job: str, verify: bool, genesis: Path | None) -> int:
    """Show the receipt of JOB; with --verify check it offline."""
    store = JobStore(get_folder())
    try:
        row = store.find(job)
        documents = store.load_documents(row.id)
        blobs = store.load_blobs(documents)
    finally:
        store.close()
    members = describe(documents) | {"job": row.id.hex(), "phase": row.phase}
    verdicts = verify_job(documents, blobs, _load_genesis(choices, genesis)) if verify else []
    passed = not verify or is_verified(verdicts)
    if choices.as_json:
        output.print_json(**members, verified=passed if verify else None, checks=_describe_verdicts(verdicts))
    else:
        _print(members, verdicts)
        if verify:
            click.echo("verified" if passed else "NOT verified")
    return output.OK if passed else output.REFUSED


def describe(documents: Documents) -> dict[str, Any]:
    """What a receipt says, as plain members; raises `Refused` under `receipt.none` where there is none yet."""
    if documents.delivery is None:
        raise Refused("the job has no receipt (yet); see `tally jobs`", rule="receipt.none")
    body = documents.delivery.receipt.body
    cost, commission, settled = read_cost(documents)
    return {
        "lease": body.lease.hex(),
        "provider": show_key(body.provider),
        "segments": body.count,
        "cause": body.cause.value,
        "records": show_digest(body.records),
        "output": show_digest(documents.delivery.records[-1].body.output),
        "log": show_digest(body.log),
        "cpu_ms": body.usage.cpu_ms,
        "wall_ms": body.usage.wall_ms,
        "peak_bytes": body.usage.peak_bytes,
        "level": body.environment.level,
        "cost": cost,
        "commission": commission,
        "settled": settled,
        "accepted": documents.acceptance is not None,
    }


def _load_genesis(choices: Choices, named: Path | None) -> Genesis:
    path = named or choices.load().genesis_path
    if path is None:
        raise Refused("name the chain's genesis file by --genesis, or in `tally init --genesis`", rule="genesis.file")
    return load_genesis(path)


def _describe_verdicts(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [{"number": one.number, "name": one.name, "passed": one.passed, "skipped": one.skipped} for one in verdicts]


def _print(members: dict[str, Any], verdicts: list[Verdict]) -> None:
    shown = {
        **members,
        "cost": f"{format_credits(members['cost'])} credits, commission {format_credits(members['commission'])}",
        "peak_bytes": show_size(members["peak_bytes"]),
        "cpu_ms": show_span(members["cpu_ms"]),
        "wall_ms": show_span(members["wall_ms"]),
        "level": escape_line(members["level"]),
    }
    names = {"peak_bytes": "peak memory", "cpu_ms": "cpu time", "wall_ms": "wall time"}
    del shown["commission"]
    for name, value in shown.items():
        text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        click.echo(f"{names.get(name, name):<12} {text}")
    for one in verdicts:
        mark = "ok" if one.passed else "skipped" if one.skipped else "FAILED"
        click.echo(f"{one.number:>3} {mark:<7} {one.name}: {one.text}")
