"""Genesis: its checks, its two forms, its digest (R13, R15 c, R18)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.ledger.blocks import compute_block_id
from chain.ledger.genesis import (
    Genesis,
    Grant,
    Params,
    Seat,
    check_genesis,
    compute_chain_id,
    compute_seats_digest,
    make_genesis,
    read_genesis,
    write_genesis,
)
from chain.ledger.ledger import Ledger, make_genesis_header
from tests.chain.ledger.world import SIGNERS, START, digest, make_test_genesis

SEAT = Seat(SIGNERS["seat"].key, digest("head"))
GRANT = Grant(SIGNERS["treasury"].key, 5)
BAD = bytes([1]) + bytes(31)

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("genesis.version", {"version": 2}),
    ("genesis.version", {"version": 0}),
    ("genesis.seats", {"seats": ()}),
    ("genesis.seats", {"seats": (SEAT, SEAT)}),
    ("genesis.balances", {"balances": (GRANT, GRANT)}),
    ("R13.supply", {"balances": (Grant(SIGNERS["broker"].key, 2**63 - 5), GRANT)}),
    ("R15.c.fee", {"params": Params(fee=0)}),
    ("R18.key", {"seats": (Seat(BAD, digest("head")),)}),
    ("R18.key", {"balances": (Grant(BAD, 1),)}),
    ("", {"params": Params(fee=0, private=True)}),
    ("", {"balances": (Grant(SIGNERS["broker"].key, 2**63 - 6), GRANT)}),
    ("", {"balances": ()}),
    ("", {}),
]


@pytest.mark.parametrize(("rule", "changes"), ROWS)
def test_each_check_of_genesis(rule: str, changes: dict[str, Any]) -> None:
    genesis = msgspec.structs.replace(make_test_genesis(), **changes)
    if not rule:
        assert check_genesis(genesis) is genesis
        assert sum(msgspec.structs.astuple(Ledger(genesis).supply())) == genesis.supply
        return
    for act in (check_genesis, Ledger, lambda one: read_genesis(write_genesis(one))):
        with pytest.raises(Refused) as caught:
            act(genesis)
        assert caught.value.rule in {rule, "genesis.form"} if act is not check_genesis else caught.value.rule == rule


@given(
    st.builds(
        Params,
        private=st.just(True),
        fee=st.integers(0, 2**63 - 1),
        quota=st.integers(1, 2**32 - 1),
        block_timers=st.integers(1, 4096),
    ),
    st.integers(0, 2**63 - 1),
)
def test_the_file_and_the_record_say_the_same(params: Params, time: int) -> None:
    genesis = make_genesis("a chain", time, [SEAT], [(GRANT.account, GRANT.amount)], params)
    assert read_genesis(write_genesis(genesis)) == genesis
    assert read_genesis(write_genesis(genesis).encode()) == genesis
    assert decode(encode(genesis), Genesis) == genesis


def edit(**changes: Any) -> str:
    """The file with a field changed; None removes it."""
    text = json.loads(write_genesis(make_test_genesis()))
    for name, value in changes.items():
        if value is None:
            del text[name]
        else:
            text[name] = value
    return json.dumps(text)


PARAMS = {name: getattr(Params(), name) for name in Params.__struct_fields__}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        edit(extra=1),
        edit(name=None),
        edit(name=""),
        edit(time=-1),
        edit(time=1.5),
        edit(params={**PARAMS, "extra": 1}),
        edit(params={"fee": 1}),
        edit(params={**PARAMS, "fee": -1}),
        edit(params={**PARAMS, "private": 1}),
        edit(params={**PARAMS, "block_timers": 4097}),
        edit(params={**PARAMS, "quota": 0}),
        edit(seats=[{"key": "zz", "beacon": "00" * 32}]),
        edit(seats=[{"key": SEAT.key.hex(), "beacon": "00"}]),
        edit(seats=[{"key": SEAT.key.hex()}]),
        edit(balances=[{"account": "zz", "amount": 1}]),
        edit(balances=[{"account": GRANT.account.hex(), "amount": 2**63}]),
        edit(balances={GRANT.account.hex(): 1}),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(text: str) -> None:
    with pytest.raises(Refused) as caught:
        read_genesis(text)
    assert caught.value.rule == "genesis.form"


def test_every_field_counts_in_the_chain_id() -> None:
    genesis = make_test_genesis()
    changes: list[dict[str, Any]] = [
        {"version": 2},
        {"name": "other"},
        {"time": START + 1},
        {"params": Params(fee=1)},
        {"seats": (Seat(SIGNERS["seat"].key, digest("other")),)},
        {"balances": genesis.balances[1:]},
    ]
    ids = {compute_chain_id(msgspec.structs.replace(genesis, **change)) for change in [{}, *changes]}
    assert len(ids) == 1 + len(genesis.__struct_fields__) == 1 + len(changes)


def test_the_genesis_header_is_computed_from_the_file_alone() -> None:
    """R16 g: height 0, slot 0, a zero parent, and the state of the first balances."""
    genesis = make_test_genesis()
    ledger, header = Ledger(genesis), make_genesis_header(genesis)
    assert ledger.head == header
    assert ledger.head_id == compute_block_id(ledger.chain_id, header)
    assert (header.height, header.slot, header.epoch, header.parent) == (0, 0, 0, bytes(32))
    assert header.seats == compute_seats_digest(ledger.chain_id, 0, [SIGNERS["seat"].key])
    assert ledger.export().recent == () and ledger.next_timer() is None
