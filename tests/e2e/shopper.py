"""A requester that a test can kill: buys a `map` or a `train`, or takes a job up again, and says a JSON line for each
piece of news. Started as `python -m tests.e2e.shopper`, with TALLY_HOME as its home."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from chain.base.errors import TallyError, Unavailable
from requester.client import AsyncMarket, Hooks, News
from requester.client.outcomes import JobFailed

RETRY_SECONDS = 0.2
"""How soon a user whose broker is gone asks again."""


def work(item: dict[str, Any]) -> int:
    """An item: waits, fails if it is told to, gives ten times its number."""
    import time  # travels by value into the sandbox

    print("item", item["number"], flush=True)
    time.sleep(item["pause"])
    if item.get("fail"):
        raise ValueError("this item fails")
    return 10 * int(item["number"])


def step(state: dict[str, Any], index: int) -> dict[str, Any]:
    """A step: waits and adds its index to the path."""
    import time  # travels by value into the sandbox

    print("step", index, flush=True)
    time.sleep(state["pause"])
    return {**state, "path": [*state["path"], index]}


def say(kind: str, **members: Any) -> None:
    print(json.dumps({"kind": kind, **members}), flush=True)


def tell(news: News) -> None:
    members = ("job", "phase", "lease", "provider", "done", "total", "text", "rule")
    say(news.kind, indices=list(news.indices), **{name: getattr(news, name) for name in members})


async def buy(market: AsyncMarket, order: dict[str, Any]) -> Any:
    """The values of the job that `order` describes."""
    hooks, wishes = Hooks(on_news=tell), order.get("wishes", {})
    try:
        match order["what"]:
            case "map":
                return (await market.map(work, order["items"], hooks=hooks, **wishes)).values
            case "train":
                state = {"pause": order["pause"], "path": []}
                return (await market.train(step, state, order["steps"], hooks=hooks, **wishes)).state["path"]
            case _:
                found = await market.result(order["job"], hooks, partial=order.get("partial", False))
    except Unavailable as error:
        say("trouble", text=str(error))
        await asyncio.sleep(RETRY_SECONDS)
        [row, *_] = market.list_jobs()
        return await buy(market, {"what": "resume", "job": row.id.hex()})
    return found.values if hasattr(found, "values") else found.state["path"]


async def main() -> None:
    order = json.loads(sys.argv[1])
    async with AsyncMarket.connect() as market:
        try:
            say("value", value=await buy(market, order))
        except JobFailed as error:
            values = getattr(error.result, "values", None)
            say("failed", text=str(error), rule=error.rule, value=values)
        except TallyError as error:
            say("failed", text=str(error), rule=error.rule, value=None)


if __name__ == "__main__":
    asyncio.run(main())
