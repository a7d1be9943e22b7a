"""Names of topics on the bus: `tally/1/<chain>/…` with the first 16 hex digits of the chain id.

A provider writes below `providers/<key>/up` and its retained presence, and reads `orders` and its own `down`. Keys
are shown as hex: no `+`, `#` or `/` can stand in a topic (threats.md row 29).
"""

from __future__ import annotations

VERSION = 1


def root(chain_id: bytes) -> str:
    """Prefix of all topics of a chain."""
    return f"tally/{VERSION}/{chain_id.hex()[:16]}"


def orders(chain_id: bytes) -> str:
    """Where the broker announces, publishes books and withdraws."""
    return f"{root(chain_id)}/orders"


def up(chain_id: bytes, provider: bytes) -> str:
    """Where one provider speaks."""
    return f"{root(chain_id)}/providers/{provider.hex()}/up"


def down(chain_id: bytes, provider: bytes) -> str:
    """Where the broker speaks to one provider."""
    return f"{root(chain_id)}/providers/{provider.hex()}/down"


def presence(chain_id: bytes, provider: bytes) -> str:
    """A provider's retained offer; emptied by its last will."""
    return f"{root(chain_id)}/providers/{provider.hex()}/presence"


def all_up(chain_id: bytes) -> str:
    """Subscription to every provider's words."""
    return f"{root(chain_id)}/providers/+/up"


def all_presence(chain_id: bytes) -> str:
    """Subscription to every provider's presence."""
    return f"{root(chain_id)}/providers/+/presence"


def provider_of(topic: str) -> bytes | None:
    """The provider key a topic names, or None. Only a hint: signatures decide."""
    parts = topic.split("/")
    try:
        return bytes.fromhex(parts[4]) if len(parts) == 6 and parts[3] == "providers" else None
    except ValueError:
        return None
