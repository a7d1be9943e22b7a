"""R18: one list of tags; signed bytes = SHA-256(tag) || chain id || payload; blobs are plain SHA-256."""

from __future__ import annotations

import hashlib
import re

import pytest

from chain.base.codec import encode
from chain.base.errors import Fault
from chain.base.hashing import NO_CHAIN, Tag, compute_digest, compute_id, compute_signed_bytes, show_digest
from tests.support import samples, wire


@pytest.mark.parametrize("tag", Tag)
def test_signed_bytes_and_ids_by_hand(tag: Tag) -> None:
    by_hand = wire.compute_signed_bytes(tag.value, samples.CHAIN, encode(samples.BID))
    assert compute_signed_bytes(tag, samples.CHAIN, samples.BID) == by_hand
    assert compute_id(tag, samples.CHAIN, samples.BID) == hashlib.sha256(by_hand).digest()


def test_tags_are_distinct_and_of_one_form() -> None:
    assert all(re.fullmatch(r"tally/[a-z]+(-[a-z]+)*/1", tag.value) for tag in Tag)
    assert len({tag.value for tag in Tag}) == len(Tag)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_chain_id_of_another_length_is_a_fault(size: int) -> None:
    with pytest.raises(Fault) as fault:
        compute_signed_bytes(Tag.TX, bytes(size), samples.BID)
    assert fault.value.rule == "R18.chain"
    assert len(NO_CHAIN) == 32


@pytest.mark.parametrize("data", [b"", b"abc", bytes(1000)], ids=len)
def test_a_blob_is_plain_sha_256(data: bytes) -> None:
    digest = hashlib.sha256(data).digest()
    assert compute_digest(data) == compute_digest(bytearray(data)) == compute_digest(memoryview(data)) == digest
    assert show_digest(digest) == f"sha256:{hashlib.sha256(data).hexdigest()}"
