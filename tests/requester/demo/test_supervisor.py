"""The supervisor: ready means ready, what dies comes back where it was, stopping leaves nothing, failures show the
log."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chain.base.errors import Unavailable
from requester.demo import supervisor as module
from requester.demo.supervisor import Part, Supervisor, show_exit

READY_THEN_SLEEP = """
import pathlib, sys, time
print("life", sys.argv[2], flush=True)
pathlib.Path(sys.argv[1]).write_text("http://127.0.0.1:1234")
time.sleep(600)
"""


class Said(list[str]):
    """What the supervisor said, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.append(line)
        self.news.set()

    async def next(self) -> str:
        async with asyncio.timeout(30):
            await self.news.wait()
        self.news.clear()
        return self[-1]


@pytest.fixture
async def said() -> Said:
    return Said()


@pytest.fixture
async def supervisor(said: Said) -> AsyncIterator[Supervisor]:
    found = Supervisor(said)
    yield found
    await found.stop()


def make_part(folder: Path, body: str = READY_THEN_SLEEP, name: str = "part") -> Part:
    ready = folder / f"{name}.ready"

    def command(address: str | None) -> list[str]:
        return [sys.executable, "-S", "-c", body, str(ready), str(address)]

    return Part(name, command, ready, folder / f"{name}.log")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_start_returns_the_address_the_part_wrote(supervisor: Supervisor, tmp_path: Path) -> None:
    assert await supervisor.start(make_part(tmp_path)) == "http://127.0.0.1:1234"


async def test_a_stale_ready_file_is_not_believed(supervisor: Supervisor, tmp_path: Path) -> None:
    part = make_part(tmp_path)
    part.ready.write_text("http://127.0.0.1:9")
    assert await supervisor.start(part) == "http://127.0.0.1:1234"


async def test_a_ready_file_that_is_still_empty_is_waited_for(supervisor: Supervisor, tmp_path: Path) -> None:
    slowly = READY_THEN_SLEEP.replace(
        "pathlib.Path", "pathlib.Path(sys.argv[1]).touch(); time.sleep(0.2); pathlib.Path", 1
    )
    assert await supervisor.start(make_part(tmp_path, slowly)) == "http://127.0.0.1:1234"


async def test_what_is_killed_comes_back_at_its_old_address_and_this_is_said(
    supervisor: Supervisor, said: Said, tmp_path: Path
) -> None:
    part = make_part(tmp_path)
    await supervisor.start(part)
    first = supervisor.running["part"].pid
    os.kill(first, signal.SIGKILL)
    assert await said.next() == "part died (SIGKILL); restarted"
    assert supervisor.running["part"].pid != first
    assert supervisor.restarts == ["part"]
    assert part.log.read_text().splitlines() == ["life None", "life http://127.0.0.1:1234"]


async def test_a_part_that_keeps_dying_is_given_up(
    supervisor: Supervisor, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RESTARTS", 2)
    await supervisor.start(make_part(tmp_path))
    for _ in range(2):
        os.kill(supervisor.running["part"].pid, signal.SIGKILL)
        assert "restarted" in await said.next()
    os.kill(supervisor.running["part"].pid, signal.SIGKILL)
    assert "given up" in await said.next()


async def test_a_part_that_ends_before_it_is_ready_shows_its_log(supervisor: Supervisor, tmp_path: Path) -> None:
    part = make_part(tmp_path, "import sys; sys.exit('the port is taken')")
    with pytest.raises(Unavailable, match=r"(?s)part ended with exit code 1.*the port is taken") as caught:
        await supervisor.start(part)
    assert caught.value.rule == "demo.part"


async def test_a_part_that_never_gets_ready_is_reported(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.2)
    with pytest.raises(Unavailable, match="was not ready"):
        await supervisor.start(make_part(tmp_path, "import time; time.sleep(600)"))


async def test_stop_ends_all_parts_even_one_that_ignores_sigterm(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.3)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY_THEN_SLEEP
    found = Supervisor(said)
    await found.start(make_part(tmp_path, name="tame"))
    await found.start(make_part(tmp_path, stubborn, name="stubborn"))
    pids = [running.pid for running in found.running.values()]
    await found.stop()
    assert not any(is_alive(pid) for pid in pids)
    assert said == []


async def test_parts_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    body = f"""
import asyncio, pathlib, sys
from requester.demo.supervisor import Part, Supervisor
async def main():
    ready = pathlib.Path({str(tmp_path)!r}) / "child.ready"
    part = Part("child", lambda address: [sys.executable, "-S", "-c", {READY_THEN_SLEEP!r}, str(ready), "x"], ready,
                ready.with_suffix(".log"))
    supervisor = Supervisor(print)
    await supervisor.start(part)
    print(supervisor.running["child"].pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", body, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    child = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    async with asyncio.timeout(30):
        while is_alive(child) and not is_zombie(child):
            await asyncio.sleep(0.01)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(("code", "shown"), [(3, "exit 3"), (0, "exit 0"), (-9, "SIGKILL"), (-15, "SIGTERM")])
def test_exits_are_shown_by_name(code: int, shown: str) -> None:
    assert show_exit(code) == shown
