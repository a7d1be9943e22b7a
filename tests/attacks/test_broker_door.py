"""What costs a stranger nothing must cost the broker nothing: orders from nowhere, orders that break a machine, a
second client of the broker's own name on the bus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.bus import MqttBus
from broker.protocol.api import PROTOCOL_VERSION, Submission
from chain.base.errors import Refused
from chain.base.units import MAX_INT
from chain.runtime.clock import SystemClock
from tests.broker.market import open_market
from tests.broker.world import BROKER, STRANGER, WINDOWS, make_order, make_spec, sign_order

EXTREMES: dict[str, dict[str, Any]] = {
    "a start window past all Instants": {"windows": msgspec.structs.replace(WINDOWS, start=MAX_INT)},
    "an answer window past all Instants": {"windows": msgspec.structs.replace(WINDOWS, answer=MAX_INT)},
    "segments past all Instants": {"segment_wall": MAX_INT, "segments": 2**20},
    "no time to answer": {"windows": msgspec.structs.replace(WINDOWS, answer=0)},
    "a panel there is not": {"panel": 5},
}


@pytest.mark.parametrize("extreme", EXTREMES)
async def test_an_order_that_no_chain_would_open_is_refused_at_the_door(extreme: str, tmp_path: Path) -> None:
    """Else its machine breaks on sums that leave their range, and its place among the live orders is lost."""
    async with open_market(tmp_path) as market:
        await market.add_seller()
        order = make_order(SystemClock().now(), **EXTREMES[extreme])
        with pytest.raises(Refused) as refused:
            await market.client().submit(
                Submission(PROTOCOL_VERSION, sign_order(order), make_spec(kind=order.kind), ())
            )
        assert refused.value.rule in ("R1.window", "R6.answer", "R10.panel")
        assert not market.node.desk.live


async def test_an_order_from_nowhere_takes_no_place(tmp_path: Path) -> None:
    """A cap of nothing asks for no balance; keys cost nothing, places among the live orders do."""
    async with open_market(tmp_path) as market:
        market.chain.balances[STRANGER.key] = 0
        order = make_order(SystemClock().now(), requester=STRANGER.key, cap=0, deposit=0)
        with pytest.raises(Refused) as refused:
            await market.client(STRANGER).submit(
                Submission(PROTOCOL_VERSION, sign_order(order, STRANGER), make_spec(), ())
            )
        assert refused.value.rule == "order.account"
        assert not market.node.desk.live


def test_nobody_can_guess_a_name_on_the_bus() -> None:
    """Threats.md row 31: a second client of the same name ends the session of the first."""
    names = {MqttBus("mqtt://127.0.0.1:1", f"broker-{BROKER.key.hex()[:16]}")._client_id for _ in range(3)}
    assert len(names) == 3 and all(len(name) >= 16 + 16 for name in names)
