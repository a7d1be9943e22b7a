"""One byte flipped in any signed object is refused by name at the first door (threats.md rows 3 and 5), and a
signature under one tag, chain or key is worthless under any other (rows 2 and 3)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_id, compute_signed_bytes
from chain.base.keys import BadSignature, Signed, verify
from tests.support import samples
from tests.support.samples import CHAIN, OTHER_CHAIN, PARTIES, Sample

ROWS = [pytest.param(one, id=one.name) for one in samples.SIGNED]
DOORS = {"codec.form", "codec.canonical", "codec.depth", "codec.items", "codec.float", "codec.trailing"}


def find_rule(sample: Sample, data: bytes, chain_id: bytes = CHAIN) -> str | None:
    """The rule under which the sample's door refuses, or None where it opens."""
    try:
        sample.door(data, chain_id)
    except Refused as error:
        return error.rule
    return None


@pytest.mark.parametrize("sample", ROWS)
def test_the_untouched_object_is_taken(sample: Sample) -> None:
    """The control of this file: what is refused below is refused for its one difference."""
    assert sample.door(encode(sample.signed), CHAIN) == sample.signed


@pytest.mark.parametrize("sample", ROWS)
def test_each_single_byte_flipped_is_refused_by_name(sample: Sample, seed: int) -> None:
    """One bit of every byte, chosen by the test's seed, and the whole byte."""
    print("seed", seed)
    draw = random.Random(seed)
    data = encode(sample.signed)
    taken, rules = [], set()
    for position in range(len(data)):
        for mask in (1 << draw.randrange(8), 0xFF):
            flipped = bytearray(data)
            flipped[position] ^= mask
            rule = find_rule(sample, bytes(flipped))
            rules.add(rule)
            if rule is None:
                taken.append((position, mask))
    assert taken == []
    assert f"signature.{sample.tag.name.lower()}" in rules
    assert all(rule in DOORS or str(rule).startswith("signature.") for rule in rules)


@pytest.mark.parametrize("sample", ROWS)
def test_every_bit_of_the_signature_counts(sample: Sample) -> None:
    signed = sample.signed
    rule = f"signature.{sample.tag.name.lower()}"
    for bit in range(512):
        other = bytearray(signed.signature)
        other[bit // 8] ^= 1 << (bit % 8)
        assert find_rule(sample, encode(Signed(signed.body, bytes(other)))) == rule, bit


@pytest.mark.parametrize("sample", ROWS)
def test_a_signature_is_worthless_under_every_other_tag(sample: Sample) -> None:
    key = PARTIES[sample.by].key
    for tag in Tag:
        if tag is sample.tag:
            assert verify(sample.signed, tag, CHAIN, key) == sample.body
            continue
        with pytest.raises(BadSignature) as refused:
            verify(sample.signed, tag, CHAIN, key)
        assert refused.value.rule == f"signature.{tag.name.lower()}"
        foreign = PARTIES[sample.by].sign(tag, CHAIN, sample.body)
        assert find_rule(sample, encode(foreign)) == f"signature.{sample.tag.name.lower()}", tag


@pytest.mark.parametrize("sample", ROWS)
def test_a_signature_is_worthless_on_another_chain(sample: Sample) -> None:
    rule = f"signature.{sample.tag.name.lower()}"
    assert find_rule(sample, encode(sample.signed), OTHER_CHAIN) == rule
    assert find_rule(sample, encode(PARTIES[sample.by].sign(sample.tag, OTHER_CHAIN, sample.body))) == rule


@pytest.mark.parametrize("sample", ROWS)
def test_a_signature_by_any_other_party_is_refused(sample: Sample) -> None:
    for name, signer in PARTIES.items():
        if name != sample.by:
            data = encode(signer.sign(sample.tag, CHAIN, sample.body))
            assert find_rule(sample, data) == f"signature.{sample.tag.name.lower()}", name


@pytest.mark.parametrize("sample", ROWS)
def test_no_door_takes_an_object_of_another_type(sample: Sample) -> None:
    """Each object at the doors of all others: refused by form, or (on the bus, where a door takes several) read as
    what it is."""
    for other in samples.SIGNED:
        if type(other.body) is type(sample.body):
            continue
        data = encode(other.signed)
        rule = find_rule(sample, data)
        if rule is None:
            assert sample.door(data, CHAIN) == other.signed
            assert sample.door in (other.door, samples.hear_broker)
        else:
            assert rule == "codec.form" or rule.startswith("signature."), other.name


def test_each_type_has_its_own_tag() -> None:
    tags: dict[Tag, Any] = {}
    for one in samples.SIGNED:
        assert tags.setdefault(one.tag, type(one.body)) is type(one.body), one.name


@pytest.mark.parametrize("sample", ROWS)
def test_the_id_does_not_depend_on_the_signature(sample: Sample) -> None:
    """threats.md row 6: ids are digests of the payload, distinct per tag and chain."""
    ids = {compute_id(tag, chain, sample.signed.body) for tag in Tag for chain in (CHAIN, OTHER_CHAIN)}
    assert len(ids) == 2 * len(Tag)
    assert compute_id(sample.tag, CHAIN, sample.body) in ids


@pytest.mark.parametrize("tag", Tag)
def test_the_signed_bytes_begin_with_tag_and_chain(tag: Tag) -> None:
    message = compute_signed_bytes(tag, CHAIN, samples.BID)
    assert len({compute_signed_bytes(one, CHAIN, samples.BID)[:32] for one in Tag}) == len(Tag)
    assert message[32:64] == CHAIN
    assert message[64:] == encode(samples.BID)
