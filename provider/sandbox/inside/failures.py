"""Turns what a job raised into bounded text: the traceback without the lines of the sandbox itself."""

from __future__ import annotations

import os
import sys

from broker.protocol.values import CannotCarry
from provider.sandbox.inside import wire
from provider.sandbox.inside.sharing import SharedByAll

_MAX_TEXT = 16 * 1024
_OURS = os.path.dirname(os.path.abspath(__file__))


def remember_source(name: str, source: bytes) -> str:
    """Decodes a script and lets tracebacks quote its lines."""
    import linecache  # 3 ms, and only scripts need it

    text = source.decode("utf-8")
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return text


def describe(error: BaseException) -> tuple[int, bytes]:
    """(outcome, the end of the traceback). The text is made by code of the job (its `__str__`): never let it raise,
    never believe it.
    """
    outcome = wire.MEMORY if isinstance(error, MemoryError) else wire.RAISED
    try:
        text = _format(error)
    except BaseException as second:  # noqa: BLE001  # a hostile __str__
        text = f"{type(error).__name__} (its text could not be made: {type(second).__name__})"
    return outcome, text.encode("utf-8", "replace")[-_MAX_TEXT:]


def _format(error: BaseException) -> str:
    if isinstance(error, CannotCarry | SharedByAll):
        return f"{type(error).__name__}: {error}\n"
    import traceback  # 8 ms, and only failures need it

    where = error.__traceback__
    while where is not None and where.tb_frame.f_code.co_filename.startswith(_OURS):
        where = where.tb_next
    sys.tracebacklimit = 100
    return "".join(traceback.format_exception(type(error), error, where))
