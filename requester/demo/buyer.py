"""The requesters of the demo, each a process of its own: what they buy, said as one JSON object a line.

`search` buys a `map` over all settings and folds and names the best setting; `train` buys a `train` with that setting
and a `run` that judges it on the held-out digits. Broker, chain and key come from the ordinary settings of a requester.
Started as `python -m requester.demo.buyer search` and `… train SETTING`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import click

from chain.base.errors import TallyError
from requester.client import AsyncMarket, Hooks, News, Wishes
from requester.client.results import Finished
from requester.demo.digits import (
    EPOCHS,
    choose_setting,
    judge,
    list_items,
    load_digits,
    make_state,
    run_epoch,
    score,
    split,
)
from requester.purchase.documents import Documents

SEED = 7
"""Of the split and of the first weights."""

Result = TypeVar("Result", bound=Finished)


@click.group()
def main() -> None:
    """One requester of the demo."""


@main.command()
@click.option("--seed", type=int, default=SEED)
@click.option("--wall", type=float, default=3, help="Seconds for a segment.")
@click.option("--within", type=float, default=240, help="Seconds for the job.")
def search(seed: int, wall: float, within: float) -> None:
    """Search over settings and folds: a `map`."""
    sys.exit(asyncio.run(_shop(partial(buy_search, seed=seed), wall, within)))


@main.command()
@click.argument("setting")
@click.option("--seed", type=int, default=SEED)
@click.option("--wall", type=float, default=3, help="Seconds for a segment.")
@click.option("--within", type=float, default=240, help="Seconds for each job.")
def train(setting: str, seed: int, wall: float, within: float) -> None:
    """Train with SETTING (JSON) and judge what came of it: a `train` and a `run`."""
    sys.exit(asyncio.run(_shop(partial(buy_training, setting=json.loads(setting), seed=seed), wall, within)))


@dataclass(frozen=True)
class Shop:
    """A market, and what all jobs have in common."""

    market: AsyncMarket
    wishes: Wishes

    async def buy(
        self, name: str, kind: str, segments: int, call: Callable[[Hooks, Wishes], Awaitable[Result]]
    ) -> Result:
        """Buy one job by `call`, telling of it under `name`."""
        say("order", name=name, job_kind=kind, segments=segments)
        result = await call(Hooks(on_news=Herald(name, self.market)), self.wishes)
        say("book", name=name, bids=list_bids(result.documents))
        say("bought", name=name, **describe(result))
        return result


async def _shop(work: Callable[[Shop], Awaitable[dict[str, Any]]], wall: float, within: float) -> int:
    """Do `work` on the market of the settings; the last line is its result, or why there is none."""
    try:
        async with AsyncMarket.connect() as market:
            wishes = Wishes(cap=20, memory="512MiB", wall=wall, within=within)
            say("result", **await work(Shop(market, wishes)))
    except TallyError as error:
        say("failed", text=str(error), rule=error.rule)
        return 1
    return 0


async def buy_search(shop: Shop, seed: int) -> dict[str, Any]:
    """The best setting with its score. Only the training digits travel."""
    images, labels = load_digits()
    rows, _ = split(labels, seed)
    work, items = partial(score, images[rows], labels[rows], seed), list_items()

    def call(hooks: Hooks, wishes: Wishes) -> Awaitable[Any]:
        return shop.market.map(work, items, wishes=wishes, hooks=hooks, parallelism=2, title="search")

    found = await shop.buy("search", "map", len(items), call)
    setting, mean = choose_setting(list(found.values))
    return {"setting": setting, "score": mean}


async def buy_training(shop: Shop, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """How good the trained network is on the digits that nothing was chosen by."""
    images, labels = load_digits()
    rows, held = split(labels, seed)
    step = partial(run_epoch, images[rows], labels[rows])

    def call_train(hooks: Hooks, wishes: Wishes) -> Awaitable[Any]:
        start = make_state(setting, seed)
        return shop.market.train(step, start, EPOCHS, wishes=wishes, hooks=hooks, title="train")

    trained = await shop.buy("train", "train", EPOCHS, call_train)
    weights = trained.state["weights"]

    def call_judge(hooks: Hooks, wishes: Wishes) -> Awaitable[Any]:
        return shop.market.run(judge, weights, images[held], labels[held], wishes=wishes, hooks=hooks, title="judge")

    judged = (await shop.buy("judge", "run", 1, call_judge)).value
    return {
        "accuracy": judged["accuracy"],
        "confusion": judged["confusion"].tolist(),
        "held_out": len(held),
        "loss": list_losses(trained.metrics),
    }


# ---- what is said ----


class Herald:
    """Passes on the news of one job, and its book as soon as the first lease is named."""

    def __init__(self, name: str, market: AsyncMarket) -> None:
        self._name = name
        self._market = market
        self._booked = False

    def __call__(self, news: News) -> None:
        """Say one of the news."""
        members = {name: getattr(news, name) for name in ("job", "phase", "lease", "provider", "text", "rule")}
        numbers = {name: getattr(news, name) for name in ("done", "total", "cost")}
        output = news.output.decode("utf-8", "replace")
        more = {"metrics": news.metrics, "output": output, "indices": list(news.indices)}
        told = {name: value for name, value in {**members, **numbers, **more}.items() if value}
        say(str(news.kind), name=self._name, **told)
        if news.kind == "lease" and not self._booked:
            self._booked = True
            say("book", name=self._name, bids=list_bids(self._market.store.load_documents(bytes.fromhex(news.job))))


def list_losses(metrics: list[dict[str, Any]]) -> list[float]:
    """The loss of each epoch, as the job reported it."""
    rows = {row["segment"]: row["loss"] for row in metrics if isinstance(row.get("loss"), float)}
    return [loss for _, loss in sorted(rows.items())]


def list_bids(documents: Documents) -> list[dict[str, Any]]:
    """All bids of all books: round, provider, price per segment in micro-credits."""
    return [
        {"round": book.body.round, "provider": bid.body.provider.hex(), "price": bid.body.price}
        for book in documents.books
        for bid in book.body.bids
    ]


def describe(result: Finished) -> dict[str, Any]:
    """The figures of a job."""
    return {
        "job": result.job,
        "cost": result.cost,
        "commission": result.commission,
        "settled": result.settled,
        "cpu_ms": result.usage.cpu_ms,
        "peak_bytes": result.usage.peak_bytes,
        "receipts": len(result.receipts),
        "providers": result.providers,
    }


def say(kind: str, **members: Any) -> None:
    """One line for the demo that started this process."""
    sys.stdout.write(json.dumps({"kind": kind, **members}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
