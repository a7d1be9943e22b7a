"""`tally case` and `tally verify`: a job as one file, and every claim of such a file checked offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused
from chain.base.keys import show_key
from chain.base.units import format_credits
from requester.cli import output
from requester.cli.app import Choices, json_flag, pass_choices
from requester.cli.progress import QUIET_SECONDS
from requester.client.settings import get_folder, load_genesis
from requester.client.texts import escape_line, show_size
from requester.purchase.casefile import Case, list_missing
from requester.purchase.caseverify import DIGESTS_ONLY, CaseReport, LeaseSummary, verify_case
from requester.purchase.checking import Verdict
from requester.purchase.phases import Phase
from requester.store.cases import gather_case, read_case_file, write_case_file
from requester.store.jobs import JobStore

ACCEPTED = {
    "requester": "accepted by the requester",
    "watcher": "accepted by the watcher",
    "silence": "accepted by silence",
}


class Beat:
    """A sign of life on stderr, every two seconds, while a large file is read or written."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        """Hear how many bytes are done."""
        now = time.monotonic()
        if now - self._last >= QUIET_SECONDS:
            self._last = now
            output.say(f"{self._verb}: {show_size(done)} so far")


@click.command()
@click.argument("job")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Where to write the case, e.g. job.case."
)
@click.option("--outputs", is_flag=True, help="With the outputs themselves, not only their digests.")
@click.option("--inputs", is_flag=True, help="With code and inputs.")
@json_flag
@pass_choices
def case(choices: Choices, job: str, out: Path, outputs: bool, inputs: bool) -> int:
    """Write everything about JOB into one file that anyone can check by `tally verify`.

    Logs and error texts are always in it, outputs, code and inputs only if asked for; your key never is.
    """
    _check_target(out)
    store = JobStore(get_folder())
    try:
        row = store.find(job)
        content = gather_case(store, row.id, outputs=outputs, inputs=inputs)
        missing = list_missing(content)
        size = write_case_file(out, content, Beat("writing"))
    finally:
        store.close()
    is_over = Phase(row.phase).is_over
    if choices.as_json:
        lacking = [{"digest": digest.hex(), "part": name.value} for digest, name in missing]
        output.print_json(
            job=row.id.hex(), file=str(out), size=size, outputs=outputs, inputs=inputs, over=is_over, missing=lacking
        )
        return output.OK
    click.echo(f"{out}: {show_size(size)}; check it by `tally verify {out} --genesis FILE`")
    if not is_over:
        output.say(f"the job is not over yet ({row.phase}): the case will not verify before it is")
    if missing:
        kinds = ", ".join(sorted({name.value for _, name in missing}))
        output.say(f"{len(missing)} blobs ({kinds}) are not here any more and are not in the file")
    return output.OK


def _check_target(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise Refused(f"-o {out} is a folder, or lies in none", rule="output.form")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--genesis", type=click.Path(path_type=Path), help="The chain's genesis file; by default that of your settings."
)
@json_flag
@pass_choices
def verify(choices: Choices, file: Path, genesis: Path | None) -> int:
    """Check the case FILE offline, with nothing but the chain's genesis file: no network and no key.

    With --genesis no settings are read either. Ends with code 7 where all checks pass, but more may have been paid than
    the leases in the file say.
    """
    path = genesis or choices.load().genesis_path
    if path is None:
        raise click.UsageError("name the chain's genesis file by --genesis; without it nothing can be checked")
    known = load_genesis(path)
    found = read_case_file(file, Beat("reading"))
    report = verify_case(found, known)
    if choices.as_json:
        output.print_json(**describe_case(found), **describe_report(report))
    else:
        _print(found, report)
    if report.is_lower_bound:
        return output.LOWER_BOUND
    return output.OK if report.passed else output.REFUSED


def describe_case(found: Case) -> dict[str, Any]:
    """What the file is about, as plain members."""
    return {
        "job": found.manifest.order.hex(),
        "chain": found.documents.chain.hex(),
        "title": found.documents.spec.title,
        "requester": show_key(found.documents.order.body.requester),
        "outputs": found.manifest.outputs,
        "inputs": found.manifest.inputs,
    }


def describe_report(report: CaseReport) -> dict[str, Any]:
    """Verdicts and what is proved, as plain members. Sums are in micro-credits; leases count from 0.
    `lower_bound` says that more may have been paid than these leases say.
    """
    return {
        "verified": report.passed,
        "checks": [
            {"number": one.number, "name": one.name, "lease": one.lease, "passed": one.passed, "skipped": one.skipped}
            for one in report.verdicts
        ],
        "leases": [_describe_lease(one) for one in report.leases],
        "unserved": [{"first": span.first, "count": span.count} for span in report.unserved],
        "tried": report.tried,
        "lower_bound": report.is_lower_bound,
    }


def _describe_lease(one: LeaseSummary) -> dict[str, Any]:
    members = {name: getattr(one, name) for name in LeaseSummary.__dataclass_fields__}
    return {**members, "lease": one.lease.hex(), "provider": show_key(one.provider)}


def _print(found: Case, report: CaseReport) -> None:
    members = describe_case(found)
    click.echo(f"job {members['job']}: {escape_line(members['title'])}")
    click.echo(f"chain {members['chain']}, ordered by {members['requester']}")
    place: int | None = None
    for one in sorted(report.verdicts, key=lambda one: -1 if one.lease is None else one.lease):
        if one.lease is not None and one.lease != place:
            click.echo(f"lease {one.lease + 1} of {len(found.documents.leases)}")
        place = one.lease
        click.echo(_show_verdict(one))
    for lease in report.leases:
        click.echo(_show_lease(lease))
    for span in report.unserved:
        click.echo(f"segments {span.first} to {span.first + span.count - 1}: no lease in this file was paid for them")
    if not found.manifest.outputs:
        click.echo(DIGESTS_ONLY)
    made = sum(one.passed for one in report.verdicts)
    if report.passed:
        spent = format_credits(sum(lease.spent for lease in report.leases))
        for line in _list_doubts(report):
            click.echo(line)
        least = "at least " if report.is_lower_bound else ""
        click.echo(
            f"verified: {made} checks passed; by the leases in this file {least}{spent} credits left the requester"
        )
    else:
        click.echo("NOT verified: the case is not what it says; what was not checked any more is not listed")


def _list_doubts(report: CaseReport) -> list[str]:
    """Why more may have been paid than the leases in the file say."""
    lines: list[str] = []
    if report.tried:
        bids = "1 bid is" if report.tried == 1 else f"{report.tried} bids are"
        lines.append(f"{bids} said not to have opened a lease; nobody signed that, so more may have been paid")
    if not report.leases:
        lines.append("the order was signed, but no lease is in this file: it does not prove that nothing was paid")
    return lines


def _show_verdict(one: Verdict) -> str:
    mark = "ok" if one.passed else "skipped" if one.skipped else "FAILED"
    return f"{one.number:>3} {mark:<7} {one.name}: {one.text}"


def _show_lease(one: LeaseSummary) -> str:
    """Who did what, what was paid for it, and who accepted it."""
    last = one.first + one.count - 1
    parts = [f"{show_key(one.provider)}: segments {one.first} to {last}: {one.served} of {one.count} paid for"]
    if one.failed:
        parts.append(f"{one.failed} failed")
    parts.append(f"{format_credits(one.paid)} credits, commission {format_credits(one.commission)}")
    if one.damages:
        parts.append(f"damages {format_credits(one.damages)}")
    parts.append(ACCEPTED.get(one.accepted, one.state))
    return "; ".join(parts)
