"""Blocks of kernel users: one daemon each, given up by dying."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chain.base.errors import Unavailable
from provider.sandbox import users
from provider.sandbox.users import BLOCK, FIRST_UID, claim_users


@contextmanager
def another_daemon(folder: Path) -> Iterator[int]:
    """A process that holds a block until it is killed; gives the block's first number."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(claim_users(folder)).encode())
        while True:
            signal.pause()
    os.close(writer)
    try:
        yield int(os.read(reader, 32))
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_no_two_daemons_share_users(tmp_path: Path) -> None:
    with another_daemon(tmp_path) as first, another_daemon(tmp_path) as second:
        ours = claim_users(tmp_path)
        assert (first, second, ours) == (FIRST_UID, FIRST_UID + BLOCK, FIRST_UID + 2 * BLOCK)
    with another_daemon(tmp_path) as again:
        assert again == FIRST_UID, "a killed daemon's users are free"


def test_one_daemon_keeps_its_users(tmp_path: Path) -> None:
    assert claim_users(tmp_path) == claim_users(tmp_path) == FIRST_UID


def test_all_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_BLOCKS", 1)
    with another_daemon(tmp_path), pytest.raises(Unavailable, match="1 daemons"):
        claim_users(tmp_path)
