"""The requester of the demo, a process of its own: buys one training of the digits and says what happens, one JSON
object a line.

It finds broker, chain and key by the ordinary settings of a requester. Started as `python -m requester.demo.buyer`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from chain.base.errors import TallyError
from chain.base.keys import show_key
from requester.client import Hooks, JobResult, Market, News
from requester.demo.digits import load_digits, train

DEMO_MEMORY = "512MiB"
"""Far above what the job needs; a provider prices it."""


@click.command()
@click.option("--seed", type=int, default=7, help="Seed of the split and of the network's first weights.")
@click.option("--cap", default="2", help="The most the job may cost, in credits.")
def main(seed: int, cap: str) -> None:
    """Buy one training run."""
    images, labels = load_digits()
    hooks = Hooks(on_news=tell_news)
    try:
        with Market.connect() as market:
            result = market.run(train, images, labels, seed, cap=cap, memory=DEMO_MEMORY, wall=60, hooks=hooks)
    except TallyError as error:
        say("failed", text=str(error), rule=error.rule)
        sys.exit(1)
    say("result", **describe(result))


def tell_news(news: News) -> None:
    """Pass on what a person would want to see."""
    say(news.kind, job=news.job, phase=news.phase, text=news.text or news.output.decode("utf-8", "replace"))


def describe(result: JobResult) -> dict[str, Any]:
    """The numbers of the result and its receipt."""
    book = result.documents.book
    return {
        "job": result.job,
        "provider": result.provider.hex(),
        "accuracy": result.value["accuracy"],
        "held_out": result.value["held_out"],
        "loss": result.value["loss"],
        "shapes": {name: list(array.shape) for name, array in result.value["weights"].items()},
        "segments": result.receipt.body.count,
        "cost": result.cost,
        "commission": result.commission,
        "settled": result.settled,
        "cpu_ms": result.usage.cpu_ms,
        "peak_bytes": result.usage.peak_bytes,
        "bids": [
            {"provider": bid.body.provider.hex(), "price": bid.body.price} for bid in (book.body.bids if book else ())
        ],
        "winner": show_key(result.provider),
    }


def say(kind: str, **members: Any) -> None:
    """One line for the demo that started this process."""
    sys.stdout.write(json.dumps({"kind": kind, **members}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
