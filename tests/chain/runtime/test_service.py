"""Logs and the life of a part: one line per event, whatever is in it; one signal asks, a second one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from chain.runtime import logs
from chain.runtime.logs import configure_logs, get_logger, show_job
from chain.runtime.service import run_service

ROOT = Path(__file__).resolve().parents[3]
NASTY = {
    "line breaks": "a\nb\r\nc",
    "terminal escapes": "\x1b[31mred\x1b]0;title\x07",
    "other controls": "\x00\x08\x7f\x9b",
    "directions": "\u202egpj.exe\u2066\u200f",
    "separators": "a\u2028b\u2029c\x85d",
    "half a surrogate": "a\ud800b",
}


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("as_json", [False, True], ids=["console", "json"])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_one_event_is_one_line_of_harmless_characters(
    capfd: pytest.CaptureFixture[str], text: str, as_json: bool
) -> None:
    """threats.md A9: in the event, in a field and in an error."""
    configure_logs(json=as_json)
    try:
        raise ValueError(text)
    except ValueError as error:
        get_logger("part").error(text, job="00", other=text, exc_info=error)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("\n")
    line = err[:-1]
    assert all(character.isprintable() for character in line), ascii(line)
    if as_json:
        fields = json.loads(line)
        assert (fields["event"], fields["other"], fields["part"], fields["level"]) == (text, text, "part", "error")
        assert "ValueError" in fields["traceback"]
        assert fields["timestamp"].endswith("Z")


def test_long_texts_are_cut_and_of_a_traceback_the_end_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(json=True)
    try:
        raise ValueError("x" * 10_000 + "the end")
    except ValueError as error:
        get_logger("part").error("y" * 10_000, exc_info=error)
    fields = json.loads(capfd.readouterr().err)
    assert fields["event"] == "y" * logs.MAX_TEXT + "… (10000 characters)"
    assert fields["traceback"].endswith("the end")
    assert len(fields["traceback"]) == logs.MAX_TEXT


def test_the_level_decides_what_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(json=True, level="warning")
    logger = get_logger("part").bind(job=show_job(bytes(range(32))))
    logger.info("hidden")
    logger.warning("shown")
    lines = capfd.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["shown"]
    assert json.loads(lines[0])["job"] == "0001020304050607"


def test_a_logger_made_before_the_logs_are_set_up_obeys_them(capfd: pytest.CaptureFixture[str]) -> None:
    logger = get_logger("early")
    configure_logs(json=True)
    logger.info("now")
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["part"] == "early"


def test_bytes_and_objects_are_shown_and_do_not_raise(capfd: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        configure_logs(json=as_json)
        get_logger("part").info("event", data=b"\x00\n", thing=object(), many=["a\n"], nothing=None)
    assert len(capfd.readouterr().err.splitlines()) == 2


# ---- the life of a part ----


def test_a_part_that_returns_ends_with_0() -> None:
    async def main(stop: Any) -> None:
        assert not stop.is_set()

    assert run_service(main) == 0


def test_an_error_of_the_part_passes_through() -> None:
    async def main(stop: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        run_service(main)


SERVICE = """
import asyncio, sys
from chain.runtime.service import run_service

async def main(stop):
    print("running", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    if "linger" in sys.argv:
        await asyncio.Event().wait()
    print("closed", flush=True)

sys.exit(run_service(main))
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVICE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert read_line(process) == "running"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


posix = pytest.mark.skipif(os.name != "posix", reason="platform: no signals between processes")


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_part_to_stop(number: signal.Signals) -> None:
    with start() as process:
        process.send_signal(number)
        assert [read_line(process), read_line(process)] == ["stopping", "closed"]
        assert process.wait(60) == 0


@posix
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_part_that_lingers(second: signal.Signals) -> None:
    with start("linger") as process:
        process.send_signal(signal.SIGTERM)
        assert read_line(process) == "stopping"
        process.send_signal(second)
        assert process.wait(60) == 128 + second
