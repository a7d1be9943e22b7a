"""What an operator may set, and the limits of what strangers may use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from chain.base.units import BPS
from chain.runtime.home import tally_home

ENVIRONMENT = "TALLY_BROKER_"
"""Prefix of variables that override the settings file."""

HOUR = 3_600_000

MAX_LIVE = 1_000
"""Orders not yet over, of all requesters: each is a machine in memory."""

MAX_LIVE_EACH = 128
"""Orders not yet over of one requester."""

UPLOAD_GRACE = HOUR
"""Milliseconds that a blob is kept which no order or receipt names."""


class BrokerSettings(msgspec.Struct, frozen=True):
    """Settings of a broker; amounts of data in bytes, `commission` in basis points, `retention_hours` how long outputs
    are kept, `bus` one of auto, mosquitto, iotcore or an MQTT address, `bus_public` the address told to others.
    """

    home: str = ""
    listen: str = "127.0.0.1:7101"
    chain: str = "http://127.0.0.1:7001"
    bus: str = "auto"
    bus_listen: str = "127.0.0.1:0"
    bus_public: str = ""
    commission: Annotated[int, msgspec.Meta(ge=0, le=BPS)] = 100
    retention_hours: Annotated[int, msgspec.Meta(ge=1, le=24 * 366)] = 168
    max_blob_bytes: Annotated[int, msgspec.Meta(ge=1)] = 2 << 30
    quota_bytes: Annotated[int, msgspec.Meta(ge=1)] = 8 << 30
    store_bytes: Annotated[int, msgspec.Meta(ge=1)] = 50 << 30
    passphrase: str = ""
    ready_file: str = ""
    log_json: bool = False
    log_level: str = "info"

    @property
    def folder(self) -> Path:
        """Where key, database, blobs and the MQTT server's files lie."""
        return Path(self.home) if self.home else tally_home() / "broker"

    @property
    def key_file(self) -> Path:
        """The broker's key."""
        return self.folder / "key.pem"

    @property
    def address_file(self) -> Path:
        """Where the address is written once the broker answers."""
        return Path(self.ready_file) if self.ready_file else self.folder / "url"

    @property
    def retention(self) -> int:
        """Milliseconds that outputs are kept after their receipt."""
        return self.retention_hours * HOUR
