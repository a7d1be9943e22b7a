"""The bus: signed messages within their size, each taken only at its own door (threats.md rows 24, 28, 29)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from broker.protocol import jobs, messages, topics
from broker.protocol.messages import MAX_MESSAGE_BYTES, TAGS, read_from_broker, read_from_provider, sign_message
from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signer
from chain.ledger.terms.work import Span
from tests.support import samples, strategies
from tests.support.samples import BROKER, CHAIN, OTHER_CHAIN, PARTIES, PROVIDER

UP = [one for one in samples.SIGNED if type(one.body) in messages.FromProvider.__args__]
DOWN = [one for one in samples.SIGNED if type(one.body) in messages.FromBroker.__args__]


def find_rule(data: bytes, *, up: bool, chain_id: bytes = CHAIN) -> str | None:
    try:
        if up:
            read_from_provider(data, chain_id)
        else:
            read_from_broker(data, chain_id, BROKER.key)
    except Refused as error:
        return error.rule
    return None


@pytest.mark.parametrize("sample", [*UP, *DOWN], ids=lambda one: one.name)
def test_a_message_is_taken_at_its_own_door_and_at_no_other(sample: samples.Sample) -> None:
    data = sign_message(PARTIES[sample.by], CHAIN, sample.body)
    up = sample in UP
    assert find_rule(data, up=up) is None
    assert find_rule(data, up=not up) == "codec.form"
    assert find_rule(data, up=up, chain_id=OTHER_CHAIN) == f"signature.{sample.tag.name.lower()}"
    assert data == encode(sample.signed)


@pytest.mark.parametrize("sample", UP, ids=lambda one: one.name)
def test_a_provider_speaks_for_itself_only(sample: samples.Sample) -> None:
    """The key in the body decides: whoever else signs is refused."""
    assert find_rule(sign_message(BROKER, CHAIN, sample.body), up=True) == f"signature.{sample.tag.name.lower()}"


@pytest.mark.parametrize("sample", DOWN, ids=lambda one: one.name)
def test_only_the_broker_speaks_down_but_for_the_requester_s_acceptance(sample: samples.Sample) -> None:
    assert find_rule(sign_message(PROVIDER, CHAIN, sample.body), up=False) == f"signature.{sample.tag.name.lower()}"
    by_broker = find_rule(sign_message(BROKER, CHAIN, sample.body), up=False)
    assert by_broker == ("signature.acceptance" if sample.name == "acceptance" else None)


def make_book(count: int) -> messages.Book:
    bids = (samples.SIGNED_BID,) * count
    return messages.Book(samples.ORDER_ID, 0, (Span(0, 1),), bids, (), bytes(32), bytes(32), samples.NOW)


def encode_book(count: int) -> bytes:
    return encode(BROKER.sign(Tag.BOOK, CHAIN, make_book(count)))


def test_a_message_too_large_is_refused_by_its_sender_and_its_reader() -> None:
    """The book with one bid more than fits."""
    count = next(count for count in range(1, 600) if len(encode_book(count)) > MAX_MESSAGE_BYTES)
    assert len(sign_message(BROKER, CHAIN, make_book(count - 1))) <= MAX_MESSAGE_BYTES
    with pytest.raises(Refused) as refused:
        sign_message(BROKER, CHAIN, make_book(count))
    assert refused.value.rule == "bus.size"
    assert find_rule(encode_book(count), up=False) == "codec.size"


@given(strategies.of(messages.Offer))
def test_any_offer_travels(offer: messages.Offer) -> None:
    signer = Signer(bytes(32))
    offer = msgspec.structs.replace(offer, provider=signer.key)
    data = sign_message(signer, CHAIN, offer)
    if len(data) <= MAX_MESSAGE_BYTES:
        assert read_from_provider(data, CHAIN).body == offer


def test_each_message_has_its_own_tag() -> None:
    assert len(set(TAGS.values())) == len(TAGS)
    assert set(TAGS) == {*messages.FromProvider.__args__, *messages.FromBroker.__args__}


# ---- jobs ----

NAMES = {
    "3.11": True, "numpy": True, "scikit-learn": True, "a" * 100: True, "a+b_c.d": True, "": False, "a" * 101: False,
    "-rf": False, ".hidden": False, "a/b": False, "..": False, "a b": False, "numpy\n": False, "a\x00": False,
    "número": False, "a\u202e": False, "a;b": False,
}  # fmt: skip


@pytest.mark.parametrize(("name", "good"), NAMES.items(), ids=map(ascii, NAMES))
def test_names_of_runtimes_and_packages_are_plain(name: str, good: bool) -> None:
    """threats.md A8."""
    for runtime in (jobs.Runtime(name, ()), jobs.Runtime("3.11", (name,))):
        try:
            taken = decode(encode(runtime), jobs.Runtime) == runtime
        except Refused as error:
            assert error.rule == "codec.form"
            taken = False
        assert taken == good


def test_levels_are_ranked() -> None:
    assert [one.rank for one in jobs.Level] == [0, 1]
    assert jobs.Level.NS_CGROUP.rank > jobs.Level.NS.rank


def test_digests_of_jobs_and_runtimes_differ_by_chain() -> None:
    assert jobs.compute_job_digest(CHAIN, samples.SPEC) != jobs.compute_job_digest(OTHER_CHAIN, samples.SPEC)
    runtime = samples.RUNTIME
    assert jobs.compute_runtime_digest(CHAIN, runtime) != jobs.compute_runtime_digest(OTHER_CHAIN, runtime)


# ---- topics ----


def test_topics_hold_no_character_of_somebody_else_s_choice() -> None:
    key = bytes.fromhex("2b23" * 16)  # "+" and "#" as bytes
    made = [topics.orders(CHAIN), topics.up(CHAIN, key), topics.down(CHAIN, key), topics.presence(CHAIN, key)]
    assert len(set(made)) == 4
    for topic in made:
        assert topic.startswith(f"tally/1/{CHAIN.hex()[:16]}/")
        assert not set("+#$\x00") & set(topic)
    assert [topics.provider_of(one) for one in made] == [None, key, key, key]


@pytest.mark.parametrize(
    "topic",
    ["", "tally/1/00/orders", "tally/1/00/providers/zz/up", "tally/1/00/providers/0/up", "tally/1/00/others/00/up",
     "tally/1/00/providers/00/up/more"],
)  # fmt: skip
def test_a_topic_that_names_no_provider_gives_none(topic: str) -> None:
    assert topics.provider_of(topic) is None


@pytest.mark.parametrize(("pattern", "made"), [(topics.all_up, topics.up), (topics.all_presence, topics.presence)])
def test_a_subscription_meets_each_provider_s_topic(pattern: object, made: object) -> None:
    assert callable(pattern)
    assert callable(made)
    wanted = str(pattern(CHAIN)).split("/")
    topic = str(made(CHAIN, PROVIDER.key)).split("/")
    assert len(wanted) == len(topic)
    assert all(one in ("+", other) for one, other in zip(wanted, topic, strict=True))
