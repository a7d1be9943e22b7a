"""Small pictures in text: a bar, a curve of the loss, a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Eighths of a character cell, from empty to full."""


def draw_bar(done: int, total: int, width: int) -> str:
    """`done` of `total` as a bar of `width` characters; more than all is all."""
    full = 0 if total <= 0 else min(width, width * done // total)
    return "█" * full + "░" * (width - full)


def draw_curve(values: Sequence[float], width: int) -> str:
    """A curve of one line, at most `width` characters; the smallest value is the lowest block. Values that are not
    finite are left out.
    """
    shown = shorten([value for value in values if math.isfinite(value)], width)
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(BLOCKS[1 + round(7 * (value - low) / span)] if span else BLOCKS[4] for value in shown)


def draw_plot(values: Sequence[float], width: int = 60, height: int = 8) -> list[str]:
    """A plot of values against their index: `height` lines with a scale on the left, and the first and last index
    below. Empty where no value is finite.
    """
    shown = shorten([value for value in values if math.isfinite(value)], width)
    if not shown:
        return []
    low, high = min(0.0, *shown), max(shown)
    span = high - low or 1.0
    eighths = [max(1, round((value - low) / span * height * 8)) for value in shown]
    lines = []
    for row in range(height - 1, -1, -1):
        label = high if row == height - 1 else low if row == 0 else None
        cells = "".join(BLOCKS[min(8, max(0, part - row * 8))] for part in eighths)
        lines.append(f"{'' if label is None else f'{label:.3f}':>8} │{cells}")
    last = str(len(values) - 1)
    lines.append(f"{'':>8} └{'─' * len(shown)}")
    lines.append(f"{'':>10}0{last:>{max(len(last) + 1, len(shown) - 1)}}")
    return lines


def draw_confusion(matrix: Sequence[Sequence[int]]) -> list[str]:
    """A confusion matrix: a row per true class, a column per guess, zeros as dots."""
    width = max(2, *(len(str(cell)) for row in matrix for cell in row)) + 1
    head = "".join(f"{number:>{width}}" for number in range(len(matrix)))
    rows = (
        f"{number:>6} │{''.join(f'{cell or chr(183):>{width}}' for cell in row)}" for number, row in enumerate(matrix)
    )
    return [f"{'guess':>6}  {head}", f"{'truth':>6} ┌{'─' * len(head)}", *rows]


def shorten(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: each the mean of its share of them."""
    count = min(len(values), width)
    edges = [number * len(values) // count for number in range(count + 1)] if count else [0]
    return [sum(values[one:two]) / (two - one) for one, two in pairwise(edges)]
