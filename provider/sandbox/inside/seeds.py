"""Fixes the chance a job can meet: `random`, NumPy's global generator and torch, seeded per segment (design.md section
2); tells `reporting` which segment that is.

A module that is imported later is seeded right after its import. Generators the job makes from the kernel's entropy
(`os.urandom`, `numpy.random.default_rng()` without a seed) stay unfixed: such a job can't be replayed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from typing import Any

_sha256 = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256
"""The built-in one: hashlib would load OpenSSL for 4 ms."""


def derive(order_id: bytes, index: int, seed: int) -> bytes:
    """The seed of a segment: SHA-256 over the order's id, the index and the order's seed."""
    digest: bytes = _sha256(order_id + index.to_bytes(8, "big") + seed.to_bytes(8, "big")).digest()
    return digest


def _seed_random(module: Any, digest: bytes, index: int) -> None:
    module.seed(int.from_bytes(digest, "big"))


def _seed_numpy(module: Any, digest: bytes, index: int) -> None:
    module.seed([int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4)])


def _seed_torch(module: Any, digest: bytes, index: int) -> None:
    module.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _name_segment(module: Any, digest: bytes, index: int) -> None:
    module.set_segment(index)


LOADING = 2**64 - 1
"""Index under which the loading of the code is seeded: no segment has it."""
_SEEDERS = {
    "random": _seed_random,
    "numpy.random": _seed_numpy,
    "torch": _seed_torch,
    "broker.protocol.reporting": _name_segment,
}
"""What is done to each module that must know its segment, called with module, digest and index."""


class Seeder:
    """Holds the present seed, applies it to what is loaded, and to what is loaded later by standing first in
    `sys.meta_path`.
    """

    def __init__(self, order_id: bytes, seed: int) -> None:
        self._order_id, self._seed = order_id, seed
        self._index = LOADING

    def move_to(self, index: int) -> None:
        """Seeds everything loaded so far, and from now on everything else, for a segment or for the loading."""
        self._index = index
        for name in _SEEDERS:
            if name in sys.modules:
                self._apply(name, sys.modules[name])

    def _apply(self, name: str, module: ModuleType) -> None:
        _SEEDERS[name](module, derive(self._order_id, self._index, self._seed), self._index)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Importlib's question: only the modules with a seed are answered here, by their usual loader with one step
        more.
        """
        if name not in _SEEDERS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_seed(module: ModuleType) -> None:
                execute(module)
                self._apply(name, module)

            loader.exec_module = execute_and_seed
        return spec
