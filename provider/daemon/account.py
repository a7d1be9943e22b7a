"""The provider's account: registered with its bond, or a clear word on what is missing (R3 e)."""

from __future__ import annotations

from chain.base.errors import Refused
from chain.base.keys import show_key
from chain.base.units import format_credits
from chain.ledger.transactions import RegisterProvider
from chain.rpc.schema import ChainInfo
from chain.runtime.logs import get_logger
from provider.daemon.links import ChainLink
from provider.daemon.transactions import Submitter

RESERVE_FEES = 100
"""So many transactions should be payable beside the bond before a provider begins: each lease costs one or two."""


async def ensure_registered(key: bytes, bond: int, chain: ChainLink, submitter: Submitter) -> int:
    """Register, or add what the bond lacks; returns the registered bond in micro-credits.

    Raises `Refused` under `provider.bond` for a bond below the chain's least, and under `provider.credits` where the
    account can't pay, naming account and sum.
    """
    info = await chain.info()
    if bond < info.min_bond:
        least = format_credits(info.min_bond)
        raise Refused(
            f"the chain asks for a bond of at least {least} credits; name one with --bond", rule="provider.bond"
        )
    account = await chain.account(key)
    log = get_logger("account")
    if account.provider and account.bond >= bond:
        log.info("registered", account=show_key(key), bond=format_credits(account.bond))
        return account.bond
    missing = bond - account.bond
    needed = missing + RESERVE_FEES * info.fee
    if account.balance < needed:
        if account.provider and account.bond >= info.min_bond:
            log.warning("the bond stays as it is, credits are missing", bond=format_credits(account.bond))
            return account.bond
        raise Refused(_ask_for_credits(key, account.balance, needed, info), rule="provider.credits")
    await submitter.submit(RegisterProvider(missing))
    log.info("registered", account=show_key(key), bond=format_credits(bond))
    return bond


def _ask_for_credits(key: bytes, balance: int, needed: int, info: ChainInfo) -> str:
    short = format_credits(needed - balance)
    return (
        f"account {show_key(key)} has {format_credits(balance)} credits on chain {info.name}; bond and first fees take "
        f"{format_credits(needed)}. Send it {short} credits, for example: tally-chain send {show_key(key)} {short}"
    )
