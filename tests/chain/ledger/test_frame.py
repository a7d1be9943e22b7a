"""R15: what every transaction must be before its body is looked at; and the plain bodies, transfer and register."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.units import MICRO
from chain.ledger.entries import Account, Provider
from chain.ledger.ledger import Ledger
from chain.ledger.results import Bonded, Transferred
from chain.ledger.terms.work import Span
from chain.ledger.transactions import (
    MAX_TX_BYTES,
    MAX_VALIDITY,
    Body,
    RegisterProvider,
    SignedTransaction,
    Transaction,
    Transfer,
    sign_transaction,
)
from chain.ledger.transition import SUBJECTS, count_signatures
from tests.chain.ledger.world import HOUR, MINUTE, SIGNERS, START, World, digest, make_params, make_test_genesis, salt


def refuse(w: World, tx: SignedTransaction, at: int | None = None) -> str:
    """The rule that refuses a signed transaction, "" if none does."""
    try:
        w.ledger.check(tx, w.now + 1 if at is None else at)
    except Refused as error:
        return error.rule
    return ""


def give(amount: int = MICRO, to: str = "stranger") -> Transfer:
    return Transfer(SIGNERS[to].key, amount)


@pytest.mark.parametrize(
    ("ahead", "rule"),
    [(-1, "R15.a.expired"), (0, ""), (MAX_VALIDITY, ""), (MAX_VALIDITY + 1, "R15.a.ahead")],
)
def test_valid_until_bounds_the_window(ahead: int, rule: str) -> None:
    """R15 a, at both boundary instants."""
    w = World()
    at = w.now + 1
    assert refuse(w, w.tx("treasury", give(), valid=at + ahead), at) == rule


def test_a_transaction_is_for_one_chain_and_one_tag() -> None:
    """Threat rows 2 and 3."""
    w = World()
    other = World(make_params(fee=2_000))
    assert refuse(w, other.tx("treasury", give())) == "R15.chain"
    body = w.tx("treasury", give()).body
    for tag in Tag:
        rule = refuse(w, SIGNERS["treasury"].sign(tag, w.chain_id, body))
        assert rule == ("" if tag is Tag.TX else "R15.signature"), tag


def test_the_sender_must_exist_and_pay() -> None:
    """R15 c."""
    w = World(make_params(deposit=500))
    assert w.refusal("stranger", give(1)) == "R15.c.account"
    w.send("treasury", give(999))
    assert w.refusal("stranger", give(1, "treasury")) == "R15.c.fee"
    w.send("treasury", give(1_001))
    assert w.refusal("stranger", give(1_001, "treasury")) == "R13.balance"
    w.send("stranger", give(1_000, "treasury"))
    assert w.balance("stranger") == 0


def test_the_fee_is_burned_and_nothing_else_is() -> None:
    """R13: fees reduce supply and are counted; a private chain may ask none."""
    for fee in (0, 7):
        w = World(make_params(private=True, fee=fee), bond=0)
        w.send("treasury", give())
        assert w.ledger.supply().burned == fee
        assert w.balance("treasury") == 1_000 * MICRO - MICRO - fee


def test_the_quota_is_sixteen_and_one_per_credit_in_the_window() -> None:
    """R15 c and d: inner signatures count, and the window is that of the remembered ids."""
    w = World(make_params(quota=16))
    w.send("treasury", give(3 * MICRO - 1))
    first = w.now + 1
    for number in range(18):
        assert w.refusal("stranger", give(1, "treasury")) == "", number
        w.send("stranger", give(1, "treasury"))
    assert w.refusal("stranger", give(1, "treasury")) == "R15.c.quota"
    lease = w.open_lease()
    assert w.refusal("stranger", w.settle(lease)) == "R15.c.quota"
    end = first + MAX_VALIDITY
    assert w.refusal("stranger", give(1, "treasury"), time=end) == "R15.c.quota"
    assert w.refusal("stranger", give(1, "treasury"), time=end + 1) == ""
    assert w.refusal("stranger", w.settle(lease), time=end + 1) == "R15.c.quota"
    assert w.refusal("stranger", w.settle(lease), time=end + 3) == ""


def test_every_body_has_a_subject_and_a_count_of_signatures() -> None:
    """R15 d."""
    w = World()
    order = w.order()
    bid = w.bid(order)
    runner = w.sign("rival", Tag.BID, w.bid(order, "rival"))
    plain = w.opening(order, bid, w.award(order, bid))
    second = w.opening(order, bid, w.award(order, bid, runner_up=runner))
    lease = w.open_lease()
    counts: dict[Body, int] = {
        plain: 4,
        second: 5,
        w.settle(lease): 3,
        w.deliver(lease): 3,
        w.extend(lease, 4): 3,
        w.call(lease): 1,
        w.answer(lease): 1,
        w.cancel(lease): 1,
        w.give_back(lease): 1,
        give(): 1,
        RegisterProvider(1): 1,
    }
    assert {type(body) for body in counts} == set(SUBJECTS)
    assert [count_signatures(body) for body in counts] == list(counts.values())


def test_a_transaction_that_is_too_large_is_refused() -> None:
    """Threats A5: 64 KiB, inner objects included."""
    w = World()
    lease = w.open_lease()
    spans = tuple(Span(2**31 + i, 2**31) for i in range(4_096))
    body = w.settle(lease, segments=spans)
    assert len(msgspec.msgpack.encode(body)) > MAX_TX_BYTES
    assert w.refusal("provider", body) == "codec.size"


@pytest.mark.parametrize("amount", [-1, True, 2**63, 2**64, "10", 1.0, None])
def test_an_amount_is_a_plain_int_in_range_even_in_memory(amount: Any) -> None:
    """Threat row 9, R18: a struct made here is held to the same form as bytes."""
    w = World()
    with pytest.raises(Refused) as caught:
        w.ledger.check(w.tx("treasury", Transfer(SIGNERS["stranger"].key, amount)), w.now + 1)
    assert caught.value.rule.startswith("codec.")


def test_owner_keys_move_money_and_operating_keys_do_the_rest() -> None:
    """R19."""
    w = World()
    lease = w.open_lease()
    for name in ("requester", "provider"):
        account = w.ledger.account(w.key(name))
        assert account is not None
        w.ledger._head.state.entries[b"a" + w.key(name)] = msgspec.structs.replace(account, operating=w.key("watcher"))

    def send(name: str, by: str, body: Any) -> str:
        frame = Transaction(w.chain_id, w.key(name), w.now + MINUTE, salt(name, by, type(body)), body)
        return refuse(w, SIGNERS[by].sign(Tag.TX, w.chain_id, frame))

    for body in (give(), RegisterProvider(1)):
        assert send("provider", "provider", body) == ""
        assert send("provider", "watcher", body) == "R15.signature"
    assert send("requester", "watcher", w.cancel(lease)) == ""
    assert send("requester", "requester", w.cancel(lease)) == "R15.signature"


# ---- replay (threat row 1, R15 a) ----------------------------------------------------------------------------------


def test_any_permutation_with_duplicates_applies_each_once() -> None:
    """In one block, over many blocks, and after a restart from a snapshot."""
    reference: set[bytes] = set()
    for order in permutations(range(4)):
        w = World(bond=0)
        txs = [w.tx("treasury", give(MICRO + n), salted=("perm", n)) for n in range(4)]
        stream = [txs[n] for n in order] + txs
        proposal = w.ledger.propose(w.ledger.head_id, w.frame(), stream)
        assert [one.error.rule for one in proposal.refused] == ["R15.a.known"] * 4
        w.ledger.commit(proposal.id)
        w.ledger.check_conservation()
        assert w.balance("stranger") == 4 * MICRO + 6
        reference.add(w.ledger.head.state)
        for tx in txs:
            assert refuse(w, tx) == "R15.a.known"
        snapshot = w.ledger.export()
        again = Ledger.load(w.genesis, snapshot.entries.items(), snapshot.header, snapshot.recent)
        for tx in txs:
            with pytest.raises(Refused, match=r"R15\.a\.known"):
                again.check(tx, w.now + 1)
    assert len(reference) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, MINUTE, MAX_VALIDITY])), max_size=12))
def test_a_transaction_sent_again_and_again_is_applied_once(sends: list[tuple[int, int]]) -> None:
    """Whatever time passes: while it is remembered it is known, afterwards it is no longer valid."""
    w = World(bond=0)
    txs = [w.tx("treasury", give(MICRO + n), valid=START + MAX_VALIDITY, salted=("again", n)) for n in range(4)]
    done: set[int] = set()
    for number, step in sends:
        proposal = w.ledger.propose(w.ledger.head_id, w.frame(time=w.now + step), [txs[number]])
        if not proposal.refused:
            assert number not in done
            done.add(number)
        else:
            assert proposal.refused[0].error.rule in {"R15.a.known", "R15.a.expired"}
        w.ledger.apply(proposal.block)
        w.ledger.commit(proposal.id)
    assert w.balance("stranger") == sum(MICRO + n for n in done)
    w.ledger.check_conservation()


def test_a_new_signature_is_no_new_transaction() -> None:
    """Threat row 6: the id does not depend on the signature."""
    w = World()
    tx = w.tx("treasury", give())
    w.block(tx)
    forged = msgspec.structs.replace(tx, signature=bytes(64))
    assert refuse(w, forged) == "R15.a.known"


# ---- transfers and bonds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "amount", "rule"),
    [
        ("stranger", 9_999, "R15.c.deposit"),
        ("stranger", 10_000, ""),
        ("broker", 1, ""),
        ("broker", 0, "R13.amount"),
        ("treasury", 5, ""),
        ("broker", 1_000 * MICRO - 1_000, ""),
        ("broker", 1_000 * MICRO - 999, "R13.balance"),
    ],
)
def test_transfers(to: str, amount: int, rule: str) -> None:
    w = World()
    assert w.refusal("treasury", give(amount, to)) == rule


def test_a_transfer_to_oneself_costs_the_fee_alone() -> None:
    w = World(bond=0)
    committed = w.send("treasury", give(5, "treasury"))
    assert w.balance("treasury") == 1_000 * MICRO - 1_000
    assert [event.happening for event in committed.events] == [Transferred(w.key("treasury"), w.key("treasury"), 5)]
    assert committed.events[0].topics == {w.key("treasury")}


def test_a_key_with_torsion_gets_no_account() -> None:
    """R18, threat row 7: also the zero key and points of small order."""
    w = World()
    for key in (bytes(32), bytes([1]) + bytes(31), digest("no point", 0)):
        assert w.refusal("treasury", Transfer(key, MICRO)) == "R18.key"


@pytest.mark.parametrize(
    ("sender", "bond", "rule"),
    [
        ("broker", MICRO - 1, "R3.e.min-bond"),
        ("broker", MICRO, ""),
        ("provider", 1, ""),
        ("provider", 0, "R13.amount"),
        ("broker", 1_000 * MICRO, "R13.balance"),
    ],
)
def test_registering_a_bond(sender: str, bond: int, rule: str) -> None:
    w = World()
    assert w.refusal(sender, RegisterProvider(bond)) == rule


def test_a_bond_moves_from_the_balance_and_grows() -> None:
    w = World(bond=5 * MICRO)
    committed = w.send("provider", RegisterProvider(7))
    assert w.ledger.provider(w.key("provider")) == Provider(5 * MICRO + 7, 0, 0, 0)
    assert w.balance("provider") == 995 * MICRO - 7 - 2_000
    (event,) = committed.events
    assert event.happening == Bonded(w.key("provider"), 7) and event.topics == {w.key("provider")}


def test_an_account_begins_with_its_own_key_as_operating_key() -> None:
    """R19."""
    w = World()
    w.send("treasury", give(10_000))
    assert w.ledger.account(w.key("stranger")) == Account(10_000, w.key("stranger"))


def test_the_same_genesis_is_the_same_chain() -> None:
    assert Ledger(make_test_genesis()).chain_id == World(bond=0).chain_id
    assert Ledger(make_test_genesis(rich=2 * MICRO)).chain_id != World(bond=0).chain_id


def test_signing_is_deterministic_so_that_a_retry_is_the_same_transaction() -> None:
    w = World()
    make = [sign_transaction(SIGNERS["treasury"], w.chain_id, give(), w.now + HOUR, salt("x")) for _ in range(2)]
    assert make[0] == make[1]
