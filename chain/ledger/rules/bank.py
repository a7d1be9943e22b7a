"""Accounts and transfers (R13, R15 c, R18). Chain fees are `chain.ledger.transition`."""

from __future__ import annotations

from chain.base.errors import Refused
from chain.base.keys import check_key
from chain.ledger.entries import Account, get_account_key
from chain.ledger.results import Transferred
from chain.ledger.rules.scope import Scope, change_account
from chain.ledger.transactions import Transfer


def process_transfer(scope: Scope, body: Transfer) -> None:
    """Move credits; an unknown receiver gets an account if the amount is at least the account deposit (R15 c)."""
    check_key(body.to)
    if body.amount == 0:
        raise Refused("a transfer moves at least one micro-credit", rule="R13.amount")
    check_balance(scope, body.amount)
    known = scope.state.account(body.to)
    if known is None and body.amount < scope.params.deposit:
        raise Refused(f"a new account needs at least {scope.params.deposit} micro-credits", rule="R15.c.deposit")

    if known is None:
        scope.state.put(get_account_key(body.to), Account(0, body.to))
    change_account(scope.state, scope.sender, -body.amount)
    change_account(scope.state, body.to, body.amount)
    scope.report(Transferred(scope.sender, body.to, body.amount))


def check_balance(scope: Scope, amount: int) -> None:
    """Raise `Refused` (`R13.balance`) unless the sender has `amount` left, the fee being paid already."""
    account = scope.state.account(scope.sender)
    balance = account.balance if account else 0
    if balance < amount:
        raise Refused(f"needs {amount} micro-credits, has {balance} after the fee", rule="R13.balance")
