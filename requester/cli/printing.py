"""A finished job on stdout: its value, or where it was written, and what it cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from broker.protocol.jobs import Entry
from chain.runtime.clock import SystemClock
from requester.cli import output
from requester.cli.files import get_value, write_result
from requester.client.results import Finished, JobResult, MapResult, TrainResult
from requester.client.texts import escape_line, show_size
from requester.client.timing import describe_retention, is_going_soon

SHOWN_FAILURES = 10


def print_result(found: Finished, out: Path | None, *, force: bool = False, as_json: bool) -> int:
    """Show a result and what it cost; write it to a file if one is named."""
    written = write_result(out, found, force=force) if out is not None else []
    if as_json:
        output.print_json(**_describe(found, out, written))
        return output.OK
    if written:
        click.echo("\n".join(f"wrote {name}" for name in written))
    else:
        click.echo(output.show_value(get_value(found)))
    if isinstance(found, JobResult) and found.value is None and found.documents.spec.entry is not Entry.FUNCTION:
        output.say("the script left nothing in its global `result`, so the value is None")
    _say_rest(found, bool(written))
    paid = "paid" if found.settled else "to be paid"
    output.say(f"{found.credits} credits {paid}, commission included; {found.checks} checks passed")
    return output.OK


def _describe(found: Finished, out: Path | None, written: list[str]) -> dict[str, Any]:
    members: dict[str, Any] = {
        "job": found.job,
        "kind": found.documents.spec.kind.value,
        "value": output.to_json(get_value(found)) if out is None else None,
        "file": None if out is None else str(out),
        "written": written,
        "providers": found.providers,
        "cost": found.cost,
        "commission": found.commission,
        "settled": found.settled,
        "checks": found.checks,
        "cpu_ms": found.usage.cpu_ms,
        "wall_ms": found.usage.wall_ms,
        "peak_bytes": found.usage.peak_bytes,
        "metrics": found.metrics,
    }
    if isinstance(found, JobResult):
        sizes = {name: len(data) for name, data in found.files.items()}
        members |= {"provider": found.provider.hex(), "files": sizes}
    if isinstance(found, MapResult | TrainResult):
        failed = {str(index): text for index, text in found.failed.items()}
        members |= {"segments": found.documents.order.body.segments, "failed": failed, "missing": list(found.missing)}
    return members


def _say_rest(found: Finished, written: bool) -> None:
    """What the value alone does not say."""
    if isinstance(found, JobResult) and found.files and not written:
        sizes = ", ".join(f"{escape_line(name)} ({show_size(len(data))})" for name, data in found.files.items())
        output.say(f"{len(found.files)} file(s): {sizes[:2_000]}; `tally result {found.job[:16]} -o DIR` writes them")
    if isinstance(found, MapResult | TrainResult):
        for index, text in list(found.failed.items())[:SHOWN_FAILURES]:
            output.say(f"segment {index} failed: {escape_line(text, limit=300)}")
        if found.missing:
            output.say(f"{len(found.missing)} segment(s) were not served")


def say_retention(job: str, kept_until: int, *, here: bool, quiet: bool) -> None:
    """Warn where outputs that are not here yet go within a day."""
    now = SystemClock().now()
    if not quiet and not here and is_going_soon(kept_until, now):
        output.say(f"warning: {describe_retention(kept_until, now)}; `tally result {job[:16]}` fetches them")


def show_left(kept_until: int, now: int) -> str:
    """Until when (UTC) the broker keeps outputs, for a table."""
    if not kept_until:
        return "-"
    return datetime.fromtimestamp(kept_until / 1_000, UTC).strftime("%Y-%m-%d %H:%M") if kept_until > now else "gone"
