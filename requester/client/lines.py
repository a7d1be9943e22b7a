"""Metrics among the live output of a job: whole lines that are reports are taken out, all else is passed on at once."""

from __future__ import annotations

from typing import Any

from broker.protocol.reporting import MAX_LINE, PREFIX, Report, parse_line


class ReportReader:
    """Takes output piece by piece. What may be the beginning of a report is held back until its line ends, but never
    more than a report may hold.
    """

    def __init__(self) -> None:
        self._held = b""
        self._fresh = True

    def feed(self, data: bytes) -> tuple[bytes, list[Report]]:
        """(output without reports, reports) of the next bytes."""
        shown: list[bytes] = []
        reports: list[Report] = []
        for line in _split(self._held + data):
            whole = line.endswith(b"\n")
            if self._fresh and not whole and _may_be_report(line):
                self._held = line
                return b"".join(shown), reports
            report = parse_line(line) if self._fresh and whole else None
            if report is None:
                shown.append(line)
            else:
                reports.append(report)
            self._fresh = whole
        self._held = b""
        return b"".join(shown), reports

    def skip(self) -> bytes:
        """Bytes are missing here: what was held back is output. What comes next may begin a line: a provider cuts its
        chunks at will, but a line is nearly always written as a whole, and whoever takes a job up begins here.
        """
        held, self._held, self._fresh = self._held, b"", True
        return held


def _split(data: bytes) -> list[bytes]:
    """Lines end with a line feed and with nothing else."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _may_be_report(line: bytes) -> bool:
    return len(line) <= MAX_LINE and (PREFIX.startswith(line) or line.startswith(PREFIX))


def list_metrics(log: bytes) -> list[dict[str, Any]]:
    """All reports of a log in order, each as a dict with its `segment`."""
    return [make_row(report) for report in ReportReader().feed(log + b"\n")[1]]


def make_row(report: Report) -> dict[str, Any]:
    """A report as one plain dict: `{"segment": 3, "loss": 0.25}`."""
    return {"segment": report.segment, **report.values}
