"""What a caller can be told while its job runs: price before signing, phases, progress, live output, trouble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from requester.purchase.quote import Quote


@dataclass(frozen=True)
class News:
    """One thing that happened to a job. `kind` is `signed`, `phase`, `progress`, `output` or `trouble`.

    `signed` comes first, as soon as the broker has the order or could not be reached: whoever is killed from then on
    has an order out (or one that is sent when the job is taken up).

    `phase` holds the phase, `done` and `total` segments, `output` new bytes the job wrote (hostile: escape them),
    `text` words for a person, `rule` the rule behind them.
    """

    kind: str
    job: str
    phase: str = ""
    done: int = 0
    total: int = 0
    output: bytes = b""
    text: str = ""
    rule: str = ""


@dataclass(frozen=True)
class Hooks:
    """Callbacks, all optional. `on_quote` sees the price before anything is signed; if it returns False, nothing is.

    They run in the loop of the market and must not block.
    """

    on_quote: Callable[[Quote], bool | None] | None = None
    on_news: Callable[[News], None] | None = None

    def tell(self, news: News) -> None:
        """Pass news on."""
        if self.on_news is not None:
            self.on_news(news)
