"""Providers and their bonds (R3 e, R14). Unbonding comes with the disputes that a bond must outlast."""

from __future__ import annotations

from chain.base.errors import Refused
from chain.ledger.entries import Provider, get_provider_key
from chain.ledger.results import Bonded
from chain.ledger.rules.bank import check_balance
from chain.ledger.rules.scope import Scope, change_account, change_provider
from chain.ledger.transactions import RegisterProvider

LEVERAGE = 1
"""Locked prices over a provider's open leases may be this many times its bond; reputation will raise it (R14)."""


def process_register(scope: Scope, body: RegisterProvider) -> None:
    """Become a provider with at least the least bond, or add to a bond (R3 e)."""
    known = scope.state.provider(scope.sender)
    if body.bond == 0:
        raise Refused("a bond grows by at least one micro-credit", rule="R13.amount")
    if known is None and body.bond < scope.params.min_bond:
        raise Refused(f"a provider's bond is at least {scope.params.min_bond} micro-credits", rule="R3.e.min-bond")
    check_balance(scope, body.bond)

    if known is None:
        scope.state.put(get_provider_key(scope.sender), Provider(0, 0, 0, 0))
    change_account(scope.state, scope.sender, -body.bond)
    change_provider(scope.state, scope.sender, bond=body.bond)
    scope.report(Bonded(scope.sender, body.bond))


def check_bond(scope: Scope, key: bytes, bond: int, price: int) -> None:
    """Raise `Refused` unless `key` is a provider with `bond` free to set aside (R3 e) and room for `price` more at risk
    (R14).
    """
    provider = scope.state.provider(key)
    if provider is None:
        raise Refused("the bidder is not registered as a provider", rule="R3.e.provider")
    free = provider.bond - provider.set_aside
    if free < bond:
        raise Refused(f"sets {bond} of its bond aside, {free} is free", rule="R3.e.set-aside")
    if provider.exposed + price > provider.bond * LEVERAGE:
        raise Refused(
            f"{provider.exposed} + {price} at risk exceed its bond of {provider.bond} times {LEVERAGE}",
            rule="R14.leverage",
        )
