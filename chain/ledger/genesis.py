"""Genesis: the seats, the first balances and the constants of one chain; its digest is the chain id.

Two forms: the canonical record that is hashed, and the JSON file that people pass around (`read_genesis`,
`write_genesis`). Whoever holds the file
can verify the whole chain, so everything that decides an outcome and is not code stands here. Rules: R13 (supply), R15
c (fee, deposit), R17, R18.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.errors import Refused
from chain.base.hashing import NO_CHAIN, Digest, Tag, compute_id
from chain.base.keys import Key, check_key
from chain.base.units import MAX_INT, MICRO, Amount, Count, Instant

GENESIS_VERSION = 1
"""Version of the ledger's rules and of the file; any other is refused (`genesis.version`)."""

MAX_BLOCK_TIMERS = 4096
"""Most timers that fire at the start of one block (R1)."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Quota = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
Timers = Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_TIMERS)]


class Seat(Record, frozen=True, tag="seat"):
    """An authority: its voting key, and the head of its beacon's hash chain (R17)."""

    key: Key
    beacon: Digest


class Grant(Record, frozen=True, tag="grant"):
    """A first balance in micro-credits."""

    account: Key
    amount: Amount


class Params(Record, frozen=True, tag="params"):
    """Constants of a chain.

    `fee` is burned per transaction, zero only where `private`; `deposit` is the least transfer that makes an account;
    `quota` the transactions and inner signatures
    an account may have in the window of 120 s before its balance counts (R15); `block_timers` the timers of one block
    (R1); `reputation` the weight of one burned micro-credit (R14).
    """

    private: bool = False
    fee: Amount = 10
    deposit: Amount = 10_000
    min_bond: Amount = MICRO
    quota: Quota = 16
    block_timers: Timers = MAX_BLOCK_TIMERS
    reputation: Count = 100


class Genesis(Record, frozen=True, tag="genesis"):
    """All that a chain starts with."""

    version: Count
    name: Name
    time: Instant
    params: Params
    seats: Annotated[tuple[Seat, ...], msgspec.Meta(min_length=1, max_length=256)]
    balances: Annotated[tuple[Grant, ...], msgspec.Meta(max_length=16_384)]

    @property
    def supply(self) -> int:
        """All credits there will ever be, in micro-credits (R13)."""
        return sum(grant.amount for grant in self.balances)


def make_genesis(
    name: str,
    time: int,
    seats: Iterable[Seat],
    balances: Iterable[tuple[bytes, int]],
    params: Params | None = None,
) -> Genesis:
    """Genesis of a new chain, checked as `check_genesis` does. `balances` are (account, micro-credits); `time` is an
    Instant.
    """
    grants = tuple(Grant(account, amount) for account, amount in balances)
    return check_genesis(Genesis(GENESIS_VERSION, name, time, params or Params(), tuple(seats), grants))


def check_genesis(genesis: Genesis) -> Genesis:
    """Return `genesis`, or raise `Refused`: `genesis.version`, `genesis.seats`, `genesis.balances`, `R13.supply`,
    `R15.c.fee`, `R18.key`.
    """
    if genesis.version != GENESIS_VERSION:
        raise Refused(
            f"genesis of version {genesis.version}; this program speaks {GENESIS_VERSION}", rule="genesis.version"
        )
    seats, accounts = [seat.key for seat in genesis.seats], [grant.account for grant in genesis.balances]
    if not seats or len(set(seats)) != len(seats):
        raise Refused("genesis needs at least one seat, each with a key of its own", rule="genesis.seats")
    if len(set(accounts)) != len(accounts):
        raise Refused("genesis grants one account twice", rule="genesis.balances")
    if genesis.supply > MAX_INT:
        raise Refused("genesis grants 2^63 micro-credits or more in total", rule="R13.supply")
    if genesis.params.fee == 0 and not genesis.params.private:
        raise Refused("only a private chain may have a zero fee", rule="R15.c.fee")
    for key in (*seats, *accounts):
        check_key(key)
    return genesis


def compute_chain_id(genesis: Genesis) -> bytes:
    """The chain id: digest of the genesis, 32 bytes."""
    return compute_id(Tag.GENESIS, NO_CHAIN, genesis)


def compute_seats_digest(chain_id: bytes, epoch: int, seats: Iterable[bytes]) -> bytes:
    """Digest of an epoch's seats (their keys in order), as the header carries it (R16 g)."""
    return compute_id(Tag.SEATS, chain_id, (epoch, tuple(seats)))


class _SeatText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    beacon: str


class _GrantText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account: str
    amount: Amount


class _GenesisText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Count
    name: Name
    time: Instant
    params: dict[str, int | bool]
    seats: list[_SeatText]
    balances: list[_GrantText]


def write_genesis(genesis: Genesis) -> str:
    """The JSON file's text: keys and digests as hex, amounts in micro-credits."""
    text = _GenesisText(
        genesis.version,
        genesis.name,
        genesis.time,
        {name: getattr(genesis.params, name) for name in Params.__struct_fields__},
        [_SeatText(seat.key.hex(), seat.beacon.hex()) for seat in genesis.seats],
        [_GrantText(grant.account.hex(), grant.amount) for grant in genesis.balances],
    )
    return msgspec.json.format(msgspec.json.encode(text), indent=2).decode() + "\n"


def read_genesis(text: str | bytes) -> Genesis:
    """Read the JSON file's text; raises `Refused` under `genesis.form` for what is no genesis, else as
    `check_genesis`.
    """
    try:
        form = msgspec.json.decode(text, type=_GenesisText)
        if set(form.params) != set(Params.__struct_fields__):
            raise ValueError(f"params must be exactly {', '.join(Params.__struct_fields__)}")
        genesis = Genesis(
            form.version,
            form.name,
            form.time,
            msgspec.convert([*_order_params(form.params)], Params),
            tuple(Seat(bytes.fromhex(seat.key), bytes.fromhex(seat.beacon)) for seat in form.seats),
            tuple(Grant(bytes.fromhex(grant.account), grant.amount) for grant in form.balances),
        )
        if any(len(seat.beacon) != 32 for seat in genesis.seats):
            raise ValueError("a beacon head has 32 bytes")
    except (msgspec.DecodeError, ValueError) as error:
        raise Refused(f"not a genesis file: {error}", rule="genesis.form") from error
    return check_genesis(genesis)


def _order_params(params: dict[str, int | bool]) -> Iterable[object]:
    yield "params"
    yield from (params[name] for name in Params.__struct_fields__)
