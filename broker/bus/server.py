"""The MQTT server as a child process: mosquitto where it is installed, else rumqttd from the package `iotcore`.

Its configuration lies in the broker's data folder. It listens on loopback, has bounds on packets, queues and
connections, dies with the broker (`broker.bus.launch`) and is started again on the same port when it dies. mosquitto
lets nobody but the broker publish announcements or what is meant for one provider, and nobody but the broker hear what
providers say (threats.md rows 24 to 31); rumqttd has no access control at all, so that it is never bound to anything
but 127.0.0.1. Either way signatures decide, topics are hints.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from broker.bus import launch
from broker.protocol.messages import MAX_MESSAGE_BYTES
from chain.base.errors import Refused, Unavailable
from chain.runtime.files import write_atomically
from chain.runtime.logs import get_logger
from chain.runtime.processes import end_process

LOOPBACK = "127.0.0.1"

MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 1_024
"""A message, its topic and properties."""

MAX_CONNECTIONS = 1_000
MAX_QUEUED = 1_000
"""Messages that the server keeps for a slow client."""

READY_SECONDS = 10.0
"""Within these a server that was started answers."""

PAUSE_SECONDS = 0.2
"""Between the death of a server and the start of the next."""

STOP_SECONDS = 3.0

STAY = (-1, -1)
"""User and group of a server that runs as who started it."""

OWNER = "broker"
"""User name of the broker itself on mosquitto."""

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@dataclass(frozen=True)
class ServerPlan:
    """How to run a server: program with arguments, files to write first into its folder (where it is started, so that
    they are named without a path and no folder above has to be open to `user`), variables to add, and the addresses
    for the broker itself and for everybody.
    """

    name: str
    command: tuple[str, ...]
    files: Mapping[str, str]
    port: int
    own_url: str
    public_url: str
    user: tuple[int, int] = STAY
    environment: Mapping[str, str] = field(default_factory=dict)


def find_mosquitto() -> str | None:
    """The installed mosquitto, or None."""
    return shutil.which("mosquitto", path=SYSTEM_PATH)


def has_iotcore() -> bool:
    """Whether the package is there."""
    return find_spec("iotcore") is not None


def choose_kind(wanted: str) -> str:
    """`mosquitto` or `iotcore` for `auto` or one of them; raises `Unavailable` (`bus.server`) where it can't be had."""
    if wanted in ("auto", "mosquitto") and find_mosquitto():
        return "mosquitto"
    if wanted in ("auto", "iotcore") and has_iotcore():
        return "iotcore"
    raise Unavailable(
        f"no MQTT server for {wanted!r}: install mosquitto (any system) or the package iotcore (Linux), "
        "or name a running MQTT 5 server by its address",
        rule="bus.server",
    )


def find_free_port() -> int:
    """A port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def plan_mosquitto(topic_root: str, port: int, host: str = LOOPBACK, program: str = "") -> ServerPlan:
    """mosquitto on `host`:`port`. `topic_root` is the prefix of all topics of the chain."""
    program = program or find_mosquitto() or ""
    if not program:
        raise Unavailable("mosquitto is not installed", rule="bus.server")
    password = secrets.token_urlsafe(18)
    config = f"""\
per_listener_settings false
listener {port} {host}
allow_anonymous true
password_file passwords
acl_file access
persistence false
allow_zero_length_clientid true
max_packet_size {MAX_PACKET_BYTES}
max_connections {MAX_CONNECTIONS}
max_inflight_messages 64
max_queued_messages {MAX_QUEUED}
max_queued_bytes {MAX_QUEUED * 4096}
max_keepalive 120
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""
    access = f"""\
topic write {topic_root}/providers/+/up
topic readwrite {topic_root}/providers/+/presence
topic read {topic_root}/providers/+/down
topic read {topic_root}/orders

user {OWNER}
topic readwrite {topic_root}/#
"""
    files = {"mosquitto.conf": config, "access": access, "passwords": f"{OWNER}:{_hash_password(password)}\n"}
    return ServerPlan(
        name="mosquitto",
        command=(program, "-c", "mosquitto.conf"),
        files=files,
        port=port,
        own_url=f"mqtt://{OWNER}:{password}@{host}:{port}",
        public_url=f"mqtt://{host}:{port}",
        user=_find_user(),
    )


def plan_iotcore(port: int, host: str = LOOPBACK) -> ServerPlan:
    """rumqttd on loopback; raises `Refused` (`bus.bind`) for any other address."""
    if host != LOOPBACK:
        raise Refused(
            f"the MQTT server of the package iotcore has no access control and is bound to {LOOPBACK} alone, "
            f"not to {host}; install mosquitto",
            rule="bus.bind",
        )
    config = f"""\
id = 0

[router]
id = 0
max_connections = {MAX_CONNECTIONS}
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 4

[v5.1]
name = "v5-1"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 5000
max_payload_size = {MAX_PACKET_BYTES}
max_inflight_count = 100
dynamic_filters = true
"""
    start = (
        "import logging; logging.basicConfig(level='CRITICAL'); "
        "from iotcore.iotcore import IotCoreBroker; IotCoreBroker(config_path='rumqttd.toml').run_forever()"
    )
    url = f"mqtt://{host}:{port}"
    command = (sys.executable, "-I", "-c", start)
    return ServerPlan("iotcore", command, {"rumqttd.toml": config}, port, url, url)


class BusServer:
    """Runs a planned server and starts it again whenever it dies."""

    def __init__(self, plan: ServerPlan, folder: Path) -> None:
        self.plan = plan
        self.restarts = 0
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._log = get_logger("bus").bind(server=plan.name)

    @property
    def pid(self) -> int | None:
        """Process id of the server that runs now."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the server; returns when it answers. Raises `Unavailable` (`bus.server`) with what it said."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in self.plan.files.items():
            write_atomically(self._folder / name, text.encode(), mode=0o600)
            os.chown(self._folder / name, *self.plan.user)
        os.chown(self._folder, *self.plan.user)
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop the server and wait until it is gone."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            await end_process(self._process, STOP_SECONDS)

    async def _spawn(self) -> None:
        command = (sys.executable, "-I", "-S", launch.__file__)
        whom = (str(os.getpid()), *map(str, self.plan.user))
        with (self._folder / "server.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                *whom,
                *self.plan.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": SYSTEM_PATH, "HOME": str(self._folder), **self.plan.environment},
                cwd=self._folder,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await self._answers():
                    if self._process.returncode is not None:
                        raise Unavailable(self._describe("ended at once"), rule="bus.server")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            self._process.kill()
            raise Unavailable(self._describe(f"gave no answer in {READY_SECONDS:.0f} s"), rule="bus.server") from error

    async def _answers(self) -> bool:
        host = self.plan.public_url.removeprefix("mqtt://").rpartition(":")[0]
        try:
            _, writer = await asyncio.open_connection(host, self.plan.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self._log.warning("the MQTT server died, starting it again", code=code)
            await asyncio.sleep(PAUSE_SECONDS)
            self.restarts += 1
            with contextlib.suppress(Unavailable):
                await self._spawn()

    def _describe(self, what: str) -> str:
        said = (self._folder / "server.log").read_text(errors="replace").strip().splitlines()
        return f"the MQTT server {self.plan.name} {what}: {' | '.join(said[-3:]) or 'it said nothing'}"


def _find_user() -> tuple[int, int]:
    """For root: whom mosquitto runs as, its own user or nobody. It would change by itself, but then it would outlive
    us (`broker.bus.launch`).
    """
    if os.geteuid() != 0:
        return STAY
    for name in ("mosquitto", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return STAY


def _hash_password(password: str) -> str:
    """mosquitto's own form: `$7$iterations$salt$hash`, PBKDF2-HMAC-SHA512."""
    salt, iterations = secrets.token_bytes(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
