"""The bus, over real servers as child processes and in one process: the same promises (threats.md rows 24 to 31)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from broker.bus import Bus, LocalBus, LocalHub, MqttBus, Will
from broker.bus import launch as launch_module
from broker.bus.local import is_match
from broker.bus.server import (
    BusServer,
    ServerPlan,
    choose_kind,
    find_free_port,
    has_iotcore,
    plan_iotcore,
    plan_mosquitto,
)
from broker.protocol import topics
from broker.protocol.messages import MAX_MESSAGE_BYTES
from broker.service.node import run_broker
from broker.service.settings import BrokerSettings
from chain.base.errors import Refused, Unavailable
from tests.broker.market import eventually
from tests.broker.mosquitto import Mosquitto, get_mosquitto
from tests.broker.world import CHAIN, PROVIDERS, FakeChain

KEY, OTHER = PROVIDERS[0].key, PROVIDERS[1].key
ORDERS, UP, DOWN = topics.orders(CHAIN), topics.up(CHAIN, KEY), topics.down(CHAIN, KEY)
PRESENCE = topics.presence(CHAIN, KEY)
SERVERS = ["iotcore", pytest.param("mosquitto", marks=pytest.mark.check)]


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    """mosquitto, in a folder that its own user can reach."""
    with tempfile.TemporaryDirectory(prefix="tally-mosquitto-") as folder:
        found = get_mosquitto(Path(folder))
        if found is None:
            pytest.skip("mosquitto is not installed and its packages can't be fetched")
        yield found


@pytest.fixture
def make_plan(request: pytest.FixtureRequest) -> Callable[[str], ServerPlan]:
    """Plans of both servers."""

    def make(name: str) -> ServerPlan:
        if name == "iotcore":
            if not has_iotcore():
                pytest.skip("the package iotcore is not installed")
            return plan_iotcore(find_free_port())
        found: Mosquitto = request.getfixturevalue("mosquitto")
        plan = plan_mosquitto(topics.root(CHAIN), find_free_port(), program=found.program)
        return replace(plan, environment=found.environment)

    return make


class World:
    """A way to make buses of the broker and of anybody, and the server if there is one."""

    def __init__(self, server: BusServer | None) -> None:
        self.server = server
        self.hub = LocalHub()
        self.opened: list[Bus] = []

    async def open(self, name: str, will: Will | None = None, *, own: bool = False) -> Any:
        bus: Bus
        if self.server is None:
            bus = LocalBus(self.hub, will)
        else:
            plan = self.server.plan
            bus = MqttBus(plan.own_url if own else plan.public_url, name, will)
        await bus.start()
        self.opened.append(bus)
        return bus


@asynccontextmanager
async def run_world(plan: ServerPlan | None, folder: Path) -> AsyncIterator[World]:
    world = World(BusServer(plan, folder / "bus") if plan else None)
    if world.server is not None:
        await world.server.start()
    try:
        yield world
    finally:
        for bus in world.opened:
            await bus.close()
        if world.server is not None:
            await world.server.close()


async def take(bus: Any, count: int = 1) -> list[tuple[str, bytes]]:
    """The next messages."""
    got: list[tuple[str, bytes]] = []
    async with asyncio.timeout(15):
        async for item in bus.messages():
            got.append(item)
            if len(got) == count:
                break
    return got


@pytest.mark.parametrize("kind", ["local", *SERVERS])
async def test_messages_arrive_and_presence_is_kept_and_removed(kind: str, make_plan: Any, tmp_path: Path) -> None:
    plan = None if kind == "local" else make_plan(kind)
    async with run_world(plan, tmp_path) as world:
        owner = await world.open("owner", own=True)
        await owner.subscribe([topics.all_up(CHAIN), topics.all_presence(CHAIN)])
        provider = await world.open("provider", Will(PRESENCE))
        await provider.subscribe([ORDERS, DOWN])
        await provider.publish(PRESENCE, b"offer", retain=True)
        assert await take(owner) == [(PRESENCE, b"offer")]
        await provider.publish(UP, b"a bid")
        assert await take(owner) == [(UP, b"a bid")]
        await owner.publish(ORDERS, b"an order", expiry_s=10)
        await owner.publish(DOWN, b"an acknowledgement")
        assert await take(provider, 2) == [(ORDERS, b"an order"), (DOWN, b"an acknowledgement")]
        late = await world.open("late", own=True)
        await late.subscribe([topics.all_presence(CHAIN)])
        assert await take(late) == [(PRESENCE, b"offer")]
        await provider.close()
        assert (await take(late))[-1] == (PRESENCE, b"")


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_killed_server_comes_back_and_nothing_said_meanwhile_is_lost(
    kind: str, make_plan: Any, tmp_path: Path
) -> None:
    async with run_world(make_plan(kind), tmp_path) as world:
        server = world.server
        assert server is not None
        owner = await world.open("owner", own=True)
        await owner.subscribe([topics.all_up(CHAIN), topics.all_presence(CHAIN)])
        provider = await world.open("provider", Will(PRESENCE))
        await provider.publish(PRESENCE, b"offer", retain=True)
        assert await take(owner) == [(PRESENCE, b"offer")]
        for round_ in range(2):
            os.kill(server.pid or 0, signal.SIGKILL)
            await eventually(lambda: not (owner.connected or provider.connected))
            await provider.publish(UP, b"said meanwhile %d" % round_)
            heard: set[tuple[str, bytes]] = set()
            while len(heard) < 2:
                heard |= set(await take(owner))
            assert heard == {(UP, b"said meanwhile %d" % round_), (PRESENCE, b"offer")}
        assert server.restarts == 2


@pytest.mark.check
async def test_mosquitto_lets_only_the_broker_announce_and_only_the_broker_listen(
    make_plan: Any, tmp_path: Path
) -> None:
    """Rows 24, 25, 27: spoofing, injection, retained poison and snooping deliver nothing, though the server answers
    the attacker as if they had worked.
    """
    async with run_world(make_plan("mosquitto"), tmp_path) as world:
        owner = await world.open("owner", own=True)
        victim = await world.open("victim")
        await victim.subscribe([ORDERS, DOWN])
        attacker = await world.open("attacker")
        await attacker.subscribe(["#", "$SYS/#", topics.all_up(CHAIN), UP])
        for topic in (ORDERS, DOWN, f"{topics.root(CHAIN)}/other"):
            await attacker.publish(topic, b"poison", retain=True)
        await victim.publish(UP, b"a sealed bid")
        await owner.publish(ORDERS, b"the truth")
        assert await take(victim) == [(ORDERS, b"the truth")]
        assert await take(attacker) == [(ORDERS, b"the truth")]
        late = await world.open("late")
        await late.subscribe([ORDERS, DOWN])
        await owner.publish(DOWN, b"the truth too")
        assert await take(late) == [(DOWN, b"the truth too")]


@pytest.mark.check
async def test_mosquitto_takes_no_wrong_password(make_plan: Any, tmp_path: Path) -> None:
    async with run_world(make_plan("mosquitto"), tmp_path) as world:
        assert world.server is not None
        bus = MqttBus(f"mqtt://broker:wrong@127.0.0.1:{world.server.plan.port}", "thief")
        with pytest.raises(Unavailable) as refused:
            await bus.start()
        assert refused.value.rule == "bus.unreachable"


async def test_no_server_is_one_clear_message() -> None:
    port = find_free_port()
    with pytest.raises(Unavailable) as refused:
        await MqttBus(f"mqtt://127.0.0.1:{port}", "lonely").start()
    assert refused.value.rule == "bus.unreachable"
    assert f"mqtt://127.0.0.1:{port}" in refused.value.message
    assert "tally-broker run" in refused.value.message


async def test_a_broker_whose_server_is_away_is_not_sent_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Node(FakeChain):
        async def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr("broker.service.node.ChainClient", lambda url: Node())
    settings = BrokerSettings(home=str(tmp_path), bus=f"mqtt://127.0.0.1:{find_free_port()}")
    with pytest.raises(Unavailable, match=r"start an MQTT server there \(mosquitto\), or leave out --bus") as refused:
        await run_broker(settings, asyncio.Event())
    assert "tally-broker run" not in refused.value.message


async def test_a_broker_says_when_it_is_through(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    with structlog.testing.capture_logs() as logs:
        await run_broker(BrokerSettings(home=str(tmp_path), chain="http://127.0.0.1:1"), stop)
    assert [line["event"] for line in logs] == ["broker stopped"]


async def test_a_server_that_says_nothing_meets_our_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 28: a refusal may be silence."""
    monkeypatch.setattr("broker.bus.mqtt.CONNECT_SECONDS", 0.3)
    held: list[Any] = []
    silent = await asyncio.start_server(lambda *pair: held.append(pair), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(Unavailable) as refused:
        await MqttBus(f"mqtt://127.0.0.1:{port}", "patient").start()
    assert refused.value.rule == "bus.unreachable"
    for _, writer in held:
        writer.close()
    silent.close()


async def test_too_large_a_message_is_refused_before_it_cuts_the_connection(make_plan: Any, tmp_path: Path) -> None:
    """Row 28."""
    async with run_world(make_plan("iotcore"), tmp_path) as world:
        owner = await world.open("owner", own=True)
        await owner.subscribe([ORDERS])
        with pytest.raises(Refused) as refused:
            await owner.publish(ORDERS, bytes(MAX_MESSAGE_BYTES + 1))
        assert refused.value.rule == "bus.size"
        await owner.publish(ORDERS, bytes(MAX_MESSAGE_BYTES))
        assert [len(data) for _, data in await take(owner)] == [MAX_MESSAGE_BYTES]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1883", "mqtt://", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        MqttBus(url, "x")
    assert refused.value.rule == "bus.url"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost"])
def test_the_server_without_access_control_stays_on_loopback(host: str) -> None:
    with pytest.raises(Refused) as refused:
        plan_iotcore(1883, host)
    assert refused.value.rule == "bus.bind"


def test_a_server_that_can_not_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bus.server.find_mosquitto", lambda: None)
    assert choose_kind("auto") == choose_kind("iotcore") == "iotcore"
    with pytest.raises(Unavailable) as refused:
        choose_kind("mosquitto")
    assert "install mosquitto" in refused.value.message
    monkeypatch.setattr("broker.bus.server.find_mosquitto", lambda: "/usr/sbin/mosquitto")
    assert choose_kind("auto") == "mosquitto"


async def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no config here')")
    server = BusServer(replace(plan_iotcore(find_free_port()), command=command), tmp_path)
    with pytest.raises(Unavailable) as refused:
        await server.start()
    assert "no config here" in refused.value.message


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", {launch!r}, str(os.getpid()), "-1", "-1", sys.executable,
    "-c", "import time; print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


async def test_the_server_dies_with_a_killed_broker() -> None:
    script = PARENT.format(launch=launch_module.__file__)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await eventually(lambda: is_gone(child))


def is_gone(pid: int) -> bool:
    """Whether a process ended, whether or not somebody has asked for its exit code."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def test_a_child_of_another_parent_does_not_start() -> None:
    command = [sys.executable, "-I", "-S", launch_module.__file__, "1", "-1", "-1", sys.executable, "-c", "print('up')"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize(
    ("pattern", "topic", "good"),
    [
        (topics.all_up(CHAIN), UP, True),
        (topics.all_up(CHAIN), DOWN, False),
        (topics.all_presence(CHAIN), topics.presence(CHAIN, OTHER), True),
        (ORDERS, ORDERS, True),
        (ORDERS, f"{ORDERS}/x", False),
        (f"{ORDERS}/x", ORDERS, False),
        ("#", UP, True),
    ],
)
def test_topic_filters(pattern: str, topic: str, good: bool) -> None:
    assert is_match(pattern, topic) is good


@pytest.mark.parametrize("topic", [UP, DOWN, PRESENCE])
def test_a_topic_names_its_provider(topic: str) -> None:
    assert topics.provider_of(topic) == KEY
    assert topics.provider_of(ORDERS) is None
    assert topics.provider_of(topic.replace(KEY.hex(), "no hex")) is None
