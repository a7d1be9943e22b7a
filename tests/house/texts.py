"""Rules about the text of every tracked file: no address of a registry or an index, no path of somebody's machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Each pattern is written so that it does not match itself.
FORBIDDEN = {
    "the address of a package registry": (
        r"py[p]i\.(org|io|python)|python[h]osted|npm[j]s\.|yarn[p]kg\.|deb\.de[b]ian|security\.de[b]ian|crates[.]io"
        r"|registry\.npm|proxy\.go[l]ang|archive\.u[b]untu|repo\d?\.ma[v]en|conda\.ana[c]onda"
    ),
    "an index address": r"^\s*-(-extra-index-u[r]l|-index-u[r]l|-find-l[i]nks|i|f)[ =]",
    "a path of one machine": r"/(home|Us[e]rs)/(?!(you|user|job)\b)[a-z]\w*/|/ro[o]t/\.\w|/wo[r]k/(main|shared)",
}


def find_forbidden_text(text: str) -> Iterator[str]:
    """What in a file's text should stand in no commit."""
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in FORBIDDEN.items():
            if match := re.search(pattern, line):
                yield f"line {number}: {what}: {match[0]}"
