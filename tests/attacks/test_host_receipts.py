"""R9: `host` is never final. A provider whose host failed can't have silence pay for it."""

from __future__ import annotations

import pytest

from chain.base.errors import Refused
from chain.ledger.terms.outcome import Cause
from tests.chain.ledger.world import World


def test_a_host_failure_is_not_delivered_even_over_the_whole_range() -> None:
    world = World()
    lease = world.open_lease()
    receipt = world.receipt(lease, None, cause=Cause.HOST)
    assert receipt.count == lease.terms.count
    with pytest.raises(Refused) as refused:
        world.ledger.check(world.tx("provider", world.deliver(lease, receipt)), world.now)
    assert refused.value.rule == "R8.final"


def test_an_accepted_host_failure_is_settled_by_its_provider_alone() -> None:
    world = World()
    lease = world.open_lease()
    settle = world.settle(lease, world.receipt(lease, None, cause=Cause.HOST))
    with pytest.raises(Refused) as refused:
        world.ledger.check(world.tx("broker", settle), world.now)
    assert refused.value.rule == "R7.sender"
    world.send("provider", settle)
    assert world.lease(lease.id).state == "settled"
