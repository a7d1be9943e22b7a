"""What a broker puts into a page of events besides what the events name is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.base.hashing import compute_digest
from requester.client.market import AsyncMarket
from tests.requester.fakes import Deed, FakeMarket, install

JUNK = [b"nobody asked for this %d" % number * 100 for number in range(8)]


def double(number: int) -> int:
    return 2 * number


async def test_blobs_that_no_event_names_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may bring a megabyte, and there is no end of pages."""
    fake = install(FakeMarket(price=1_000, deed=Deed(value=42)), tmp_path, monkeypatch)
    fake.pages |= {compute_digest(blob): blob for blob in JUNK}
    async with AsyncMarket.connect() as market:
        result = await market.run(double, 21, cap=2)
        assert result.value == 42
        named = set(fake.pages) - {compute_digest(blob) for blob in JUNK}
        assert named and all(market.store.blobs.get(digest) is not None for digest in named)
        assert [market.store.blobs.get(compute_digest(blob)) for blob in JUNK] == [None] * len(JUNK)
