"""What a caller can be told while its job runs: price before signing, phases, segments, metrics, output, trouble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requester.purchase.quote import Quote


class NewsKind(StrEnum):
    """What news are about; `News` says which of its fields go with which."""

    SIGNED = "signed"
    PHASE = "phase"
    LEASE = "lease"
    PROGRESS = "progress"
    SEGMENTS = "segments"
    METRICS = "metrics"
    OUTPUT = "output"
    TRANSFER = "transfer"
    TROUBLE = "trouble"


@dataclass(frozen=True)
class News:
    """One thing that happened to a job.

    - `signed` comes first, as soon as the broker has the order or could not be reached: whoever is killed from then on
      has an order out (or one that is sent when the job is taken up)
    - `phase`: the job has reached `phase`; `text` and `rule` say why where it ended badly
    - `lease`: a lease of it has reached `phase`: `lease`, `provider`, `indices` (its segments)
    - `progress`: the provider of `lease` says that `done` of its `total` segments are done; nothing of it is verified
    - `segments`: the segments `indices` of `lease` are verified and here: `done` of `total` of the job, which costs
      `cost` so far (micro-credits, commission included); the broker keeps the outputs until `kept_until` (an Instant)
    - `metrics`: the job reported `metrics` for a segment (`indices`); its own word, hostile text within
    - `output`: new bytes that the job wrote in `lease` (hostile: escape them)
    - `transfer`: `done` of `total` bytes of a large blob; `text` is `upload` or `download`; inputs go before the order
      is signed, when there is no `job` yet
    - `trouble`: something that is tried again, `text` in words for a person, under `rule`
    """

    kind: str
    job: str
    phase: str = ""
    lease: str = ""
    provider: str = ""
    indices: tuple[int, ...] = ()
    done: int = 0
    total: int = 0
    cost: int = 0
    kept_until: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
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


NO_HOOKS = Hooks()
"""Nobody listens."""
