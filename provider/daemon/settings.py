"""What an operator may set: a TOML file, overridden by TALLY_PROVIDER_… variables, overridden by flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from broker.protocol.jobs import Resources
from chain.base.errors import Refused
from chain.base.keys import parse_key
from chain.base.units import BPS, parse_credits
from chain.runtime.home import tally_home
from provider.bidding.capacity import Pool
from provider.bidding.policy import Policy
from provider.bidding.pricing import Prices, compute_price

ENVIRONMENT = "TALLY_PROVIDER_"
"""Prefix of variables that override the settings file."""

MIB = 1 << 20

_SHARE = (3, 4)
"""The part of the host's memory that is lent unless the operator says how much."""


class ProviderSettings(msgspec.Struct, frozen=True):
    """Settings of a provider.

    `slots` jobs run at once (0: one per core), within `memory_mib` (0: three quarters of the host's) and `cores` (0:
    all). `price` in credits is asked per segment before rates; `core_hour` and `gib_hour` are credits per hour of a
    core and of a GiB; `factor` in percent scales it all. `bond` in credits is registered on the chain. `wall_s` is
    the longest segment taken. `drain_s` is how long running jobs may go on at shutdown before they are given back,
    `wait_s` how long a part that does not answer is waited for at the start. `packages`, separated by spaces or commas,
    are those that jobs may import besides NumPy, as they are installed beside this command. `warm` is how many
    sandboxes stand ahead of their jobs (-1: as many as slots, if memory is plenty).
    """

    home: str = ""
    chain: str = "http://127.0.0.1:7001"
    broker: str = "http://127.0.0.1:7101"
    bus: str = ""
    slots: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    memory_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    cores: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    price: str = "0.001"
    core_hour: str = "0.036"
    gib_hour: str = "0.0072"
    factor: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100
    bond: str = "10"
    warm: Annotated[int, msgspec.Meta(ge=-1, le=64)] = -1
    wall_s: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)] = 86_400
    denied: str = ""
    allowed: str = ""
    drain_s: Annotated[int, msgspec.Meta(ge=0)] = 2
    wait_s: Annotated[int, msgspec.Meta(ge=0)] = 10
    runtimes: str = ""
    packages: str = ""
    passphrase: str = ""
    ready_file: str = ""
    log_json: bool = False
    log_level: str = "info"

    @property
    def folder(self) -> Path:
        """Where key, database and the files of running jobs lie."""
        return Path(self.home) if self.home else tally_home() / "provider"

    @property
    def key_file(self) -> Path:
        """The provider's key."""
        return self.folder / "key.pem"

    @property
    def ready_path(self) -> Path:
        """What is written once the provider takes orders: its account."""
        return Path(self.ready_file) if self.ready_file else self.folder / "ready"

    @property
    def pool(self) -> Pool:
        """What of this host is lent."""
        cores = self.cores or os.cpu_count() or 1
        memory = self.memory_mib * MIB or read_memory() * _SHARE[0] // _SHARE[1]
        return Pool(self.slots or cores, memory, cores * 1_000)

    @property
    def prices(self) -> Prices:
        """Prices in micro-credits. Raises `Refused` under `units.credits` for what is no amount."""
        return Prices(
            base=parse_credits(self.price),
            core_second=parse_credits(self.core_hour) // 3_600,
            gib_second=parse_credits(self.gib_hour) // 3_600,
            factor=self.factor * BPS // 100,
        )

    @property
    def policy(self) -> Policy:
        """House rules; `allowed` and `denied` are accounts separated by spaces or commas."""
        return Policy(allowed=_parse_keys(self.allowed), denied=_parse_keys(self.denied))

    def check(self) -> None:
        """Raise `Refused` for a setting that makes no sense, before anything is started."""
        if parse_credits(self.bond) == 0:
            raise Refused("a provider needs a bond; name one with --bond", rule="settings.value")
        resources = Resources(MIB, 1_000, 1_000, 1, 1, 1, 1, 1, 1, 1)
        compute_price(self.prices, resources, self.wall_s * 1_000)
        if self.allowed or self.denied:
            _ = self.policy


def read_memory() -> int:
    """Bytes of memory of this host; 1 GiB where it can't be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 30


def read_available() -> int:
    """Bytes of memory that this host could give without swapping; 0 where it can't be told."""
    try:
        rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) << 10 for row in rows if row.startswith("MemAvailable:")), 0)


def _parse_keys(text: str) -> frozenset[bytes]:
    return frozenset(parse_key(part) for part in text.replace(",", " ").split())
