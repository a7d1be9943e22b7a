"""Work from Python calls, looked at before anything is signed: a segment that fails by its arguments is paid like any
other (R9).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chain.base.errors import Refused
from chain.ledger.terms.agreement import Kind
from requester.client.packing import Work, make_map, make_run, make_train, pack_code, pack_function
from requester.client.wishes import Wishes

Callee = Callable[..., Any] | str | Path
"""What a `map` or `train` calls: a function, or `FILE.py:function`, or `FOLDER:function`."""


def make_call(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Work:
    """`function(*args, **kwargs)`. Raises `Refused` under `function.arguments` where it can't be called so, else as
    `make_run`.
    """
    _check_call(function, args, kwargs)
    return make_run(pack_function(function), args, kwargs)


def make_calls(function: Callee, items: Iterable[Any]) -> Work:
    """`function(item)` for each item. Raises as `make_call` and `make_map`."""
    if callable(function):
        _check_call(function, (None,))
    return make_map(pack_code(function, Kind.MAP), items)


def make_steps(step: Callee, state: Any, steps: int) -> Work:
    """`state = step(state, index)` so many times. Raises as `make_call` and `make_train`."""
    if callable(step):
        _check_call(step, (state, 0))
    return make_train(pack_code(step, Kind.TRAIN), state, steps)


def _check_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
    """What has no signature, as some builtins, is left to the sandbox."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    given = kwargs or {}
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        unknown = [key for key in given if key not in signature.parameters]
        likely = difflib.get_close_matches(unknown[0], Wishes.__struct_fields__, 1) if unknown else []
        hint = f"; did you mean the wish `{likely[0]}`?" if likely else ""
        message = f"{name} cannot be called so: {error}{hint}; nothing was signed"
        raise Refused(message, rule="function.arguments") from error
