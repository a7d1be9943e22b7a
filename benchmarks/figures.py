"""One measured number with its aim and its limit, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """`aim` is what we want to reach, `limit` what must be kept, in `unit`; None where there is none. Both are upper
    bounds, or lower ones where `more` is better.
    """

    value: float
    unit: str
    aim: float | None = None
    limit: float | None = None
    more: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the limit (else the aim) is kept; None where there is neither."""
        bound = self.limit if self.limit is not None else self.aim
        return None if bound is None else self.keeps(bound)

    def keeps(self, bound: float) -> bool:
        """Whether the value is on the good side of `bound`."""
        return self.value >= bound if self.more else self.value <= bound

    def to_json(self) -> dict[str, Any]:
        bounds = {"aim": self.aim, "limit": self.limit, "more": self.more}
        return {"value": self.value, "unit": self.unit, **bounds, "met": self.met}

    def to_text(self) -> str:
        bounds = [
            f"{word} {bound:g}" for word, bound in (("aim", self.aim), ("limit", self.limit)) if bound is not None
        ]
        verdict = {True: "met", False: "NOT met", None: ""}[self.met]
        reached = "" if self.aim is None else ", aim reached" if self.keeps(self.aim) else ", aim not reached"
        return f"{self.value:10.2f} {self.unit:<6} {', '.join(bounds):<24} {verdict}{reached}"


def compute_percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
