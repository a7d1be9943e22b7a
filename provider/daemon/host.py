"""What this host is: its sandbox, runtimes and numeric labels, and what it says of itself in an offer."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy

from broker.protocol.jobs import Level, Runtime
from broker.protocol.messages import Offer
from chain.base.errors import Unavailable
from chain.runtime.home import tally_home
from provider.bidding.desk import Funds
from provider.bidding.pricing import make_tariff
from provider.daemon.links import Host
from provider.daemon.settings import ProviderSettings, read_available
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.executor import Sandbox
from provider.sandbox.probe import SYSTEM_BWRAPS, probe
from provider.sandbox.runtimes import PACKAGES, RuntimeImage, build_image, get_default_folder

OFFER_MS = 15_000
"""How long an offer stands without being renewed: so soon a provider that vanished is missed."""

HEARTBEAT_SECONDS = 5.0
"""How often it is renewed."""

WARM_BYTES = 48 << 20
"""Memory of a sandbox that stands ahead of its task, with NumPy loaded."""

_WARM_PARTS = 32

_FEATURES = ("avx512f", "avx2", "avx", "sse4_2", "asimd")
"""CPU features that numeric libraries dispatch on, best first (threats.md trap 8)."""


async def examine(settings: ProviderSettings) -> tuple[RuntimeImage, HostAbilities]:
    """Build the runtime image if need be, and try out what the host can enforce. Raises `Unavailable` where the image
    cannot be built.
    """
    more = settings.packages.replace(",", " ").lower().split()
    image = build_image(find_runtimes(settings), tuple(dict.fromkeys((*PACKAGES, *more))))
    return image, await probe(image, bwraps=find_bwraps())


def find_bwraps() -> tuple[str, ...]:
    """Where a bubblewrap of the system may be: the usual places, then the path, as set-up looks."""
    found = shutil.which("bwrap")
    return (*SYSTEM_BWRAPS, found) if found else SYSTEM_BWRAPS


def find_runtimes(settings: ProviderSettings) -> Path:
    """Where images lie: they must be reachable by the users that jobs run as, hence never below a home of root."""
    if settings.runtimes:
        return Path(settings.runtimes)
    if os.geteuid() == 0:
        return get_default_folder(None)
    return tally_home() / "runtimes"


def count_warm(settings: ProviderSettings) -> int:
    """How many sandboxes stand ahead of their tasks: as many as jobs run at once, within a thirty-second part of the
    memory that is free now, unless the operator says how many.
    """
    if settings.warm >= 0:
        return settings.warm
    return min(settings.pool.slots, read_available() // (_WARM_PARTS * WARM_BYTES))


def open_sandbox(image: RuntimeImage, abilities: HostAbilities, slots: int, warm: int = 0) -> Sandbox:
    """The sandbox of a host that can enforce what is needed, else `Unavailable` under `sandbox.level` (there is no
    other way to run jobs).
    """
    if abilities.level is None or abilities.level.rank < Level.NS.rank:
        why = "; ".join(abilities.reasons) or "unknown reasons"
        raise Unavailable(f"this host can't sandbox jobs, so it takes none: {why}", rule="sandbox.level")
    return Sandbox(image, abilities, slots=slots, warm=warm)


def describe(image: RuntimeImage, abilities: HostAbilities) -> Host:
    """What records, receipts and offers say of this host."""
    if abilities.level is None:
        raise Unavailable("this host can't sandbox jobs", rule="sandbox.level")
    packages = tuple(sorted(name for name, _ in image.packages))
    return Host(abilities.level, (Runtime(image.python, packages),), find_dispatch(), find_blas())


def find_dispatch() -> str:
    """The strongest CPU feature that numeric libraries choose code by."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        flags = set()
    return next((name for name in _FEATURES if name in flags), platform.machine())


def find_blas() -> str:
    """The linear algebra library NumPy was built with, and its version."""
    built: Any = numpy.show_config(mode="dicts")
    found = built.get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()[:200]


def make_offer(key: bytes, host: Host, settings: ProviderSettings, funds: Funds, now: int) -> Offer:
    """What this provider has and can enforce, at `now`."""
    pool = settings.pool
    free = max(0, funds.bond - max(funds.set_aside, funds.exposed))
    return Offer(
        provider=key,
        sequence=now,
        valid_until=now + OFFER_MS,
        runtimes=host.runtimes,
        level=host.level,
        slots=pool.slots,
        memory_bytes=pool.memory_bytes,
        millicores=pool.millicores,
        segment_wall=settings.wall_s * 1_000,
        bond_free=free,
        prices=make_tariff(settings.prices),
    )


def make_farewell(offer: Offer, now: int) -> Offer:
    """The word after which nobody waits for this provider any more: the same offer without slots."""
    return msgspec.structs.replace(offer, sequence=max(now, offer.sequence + 1), valid_until=now + OFFER_MS, slots=0)
