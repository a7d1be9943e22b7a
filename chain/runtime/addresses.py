"""Addresses that a part listens at."""

from __future__ import annotations

import ipaddress

from chain.base.errors import Refused


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:7001` or `[::1]:0`; raises `Refused` under `settings.listen`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise Refused(f"{text!r} is no address to listen at; write for example 127.0.0.1:7001", rule="settings.listen")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
