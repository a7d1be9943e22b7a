"""Our code still makes the bytes of the golden vectors, and every type that is signed or hashed has one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.protocol.messages import TAGS, FromBroker, FromProvider
from chain.base.codec import decode, encode
from chain.base.hashing import Tag, compute_digest, compute_id
from chain.base.keys import Signed
from chain.consensus.beacon import compute_beacon
from chain.ledger.blocks import compute_block_id
from chain.ledger.entries import Entry
from chain.ledger.genesis import compute_chain_id, compute_seats_digest
from chain.ledger.transactions import Body
from chain.ledger.tree import StateTree
from tests.golden import write
from tests.support import samples, samples_ledger

FRESH = write.make_all()
UNFROZEN = {
    Tag.ENVELOPE: "nothing is sealed yet",
    Tag.RESULT: "results are leaves of an RFC 6962 tree (plain.json) and have no id",
}
"""Tags without a vector, each with its reason."""


@pytest.mark.parametrize("name", FRESH)
def test_the_bytes_have_not_changed(name: str) -> None:
    """A difference is a change of the protocol; see README.md before you write them anew."""
    stored = json.loads((write.FOLDER / f"{name}.json").read_text("utf-8"))
    for old, new in zip(stored, FRESH[name], strict=True):
        assert old == new


@pytest.mark.parametrize("name", FRESH)
def test_a_file_is_as_the_command_writes_it(name: str) -> None:
    assert (write.FOLDER / f"{name}.json").read_text("utf-8") == write.show(FRESH[name])


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in write.FOLDER.glob("*.json")} == set(FRESH)


@pytest.mark.parametrize("sample", samples.SIGNED, ids=samples.list_names())
def test_stored_bytes_decode_to_the_object(sample: samples.Sample) -> None:
    stored = {one["name"]: one for file in write.FOLDER.glob("*.json") for one in json.loads(file.read_text("utf-8"))}
    data = bytes.fromhex(stored[sample.name]["signed_encoding"])
    kind: Any = Signed[type(sample.body)]  # type: ignore[misc]  # a type made here
    assert decode(data, kind) == sample.signed


def test_every_tag_has_a_vector() -> None:
    frozen = {Tag(one["tag"]) for vectors in FRESH.values() for one in vectors if "tag" in one}
    assert frozen | set(UNFROZEN) == set(Tag)
    assert not frozen & set(UNFROZEN)


def test_the_ledger_hashes_what_the_vectors_say() -> None:
    """The ledger's own functions give the ids of the vectors made from bare bodies."""
    ids = {name: compute_id(tag, chain_id, body) for name, tag, chain_id, body in samples_ledger.HASHED}
    bodies = {name: body for name, _, _, body in samples_ledger.HASHED}
    tree = StateTree(samples.CHAIN)
    assert compute_chain_id(samples_ledger.GENESIS) == ids["genesis"]
    assert compute_seats_digest(samples.CHAIN, *bodies["seats"]) == ids["seats"]
    assert compute_beacon(samples.CHAIN, *bodies["beacon"]) == ids["beacon"]
    assert compute_block_id(samples.CHAIN, samples.HEADER) == ids["header"]
    assert ids["lease"] == samples.LEASE
    assert (samples.ORDER.job, samples.ORDER.runtime) == (ids["job"], ids["runtime"])
    assert tree.compute_place(samples_ledger.ACCOUNT_KEY) == ids["state key"]
    leaf = tree.make_leaf(samples_ledger.ACCOUNT_KEY, b"value")
    assert leaf.hash == compute_id(Tag.STATE_LEAF, samples.CHAIN, (leaf.place, compute_digest(b"value")))


@pytest.mark.parametrize("entry", [pytest.param(one, id=name) for name, one in samples_ledger.ENTRIES])
def test_every_kind_of_entry_has_a_vector(entry: Entry) -> None:
    assert {type(one) for _, one in samples_ledger.ENTRIES} == set(Entry.__args__)
    assert decode(encode(entry), type(entry)) == entry


def test_every_message_and_every_transaction_body_has_a_sample() -> None:
    sampled = {type(one.body) for one in samples.SIGNED}
    assert {*FromBroker.__args__, *FromProvider.__args__} <= sampled
    assert set(TAGS) <= sampled
    assert {type(one) for one in samples.BODIES.values()} == set(Body.__args__)
    for one in samples.SIGNED:
        assert TAGS.get(type(one.body), one.tag) is one.tag
