"""Keeps back what modules want done at each fork, from the runner alone.

Importing cloudpickle loads `threading` and `logging`, which have Python run code of theirs after every fork: 170 page
faults, as much as all the rest of a small segment. The runner has one thread and no lock that is held, so nothing is to
be put right when it forks. A job may fork as well: then they are registered first.
"""

from __future__ import annotations

import importlib
import os

TYPE_CHECKING = False  # typing costs 5 ms at each start
if TYPE_CHECKING:
    from collections.abc import Callable

_held: list[dict[str, Callable[[], object]]] = []


def import_withheld(name: str) -> None:
    """Imports a module; what it and those it loads want done at forks is kept back."""

    def hold(**functions: Callable[[], object]) -> None:
        _held.append(functions)

    register = os.register_at_fork
    os.register_at_fork = hold  # type: ignore[assignment]  # it takes what the real one takes, by name
    try:
        importlib.import_module(name)
    finally:
        os.register_at_fork = register
        os.fork = fork


def register_withheld() -> None:
    """From now on, in this process and its children, forks do what was kept back."""
    while _held:
        os.register_at_fork(**_held.pop(0))


_fork = os.fork


def fork_bare() -> int:
    """The runner's own fork: nothing that was kept back is done."""
    return _fork()


def fork() -> int:
    """Stands for `os.fork` in a job."""
    register_withheld()
    return _fork()
