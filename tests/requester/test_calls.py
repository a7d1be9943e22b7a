"""Calls that cannot work are refused before anything is signed: a segment that fails by its arguments is paid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chain.base.errors import Refused
from requester.client import AsyncMarket
from requester.client.calls import make_call, make_calls, make_steps
from tests.requester.fakes import FakeMarket, install


def one(value: int) -> int:
    return value


def step(state: int, index: int) -> int:
    return state + index


def lenient(*args: int, **kwargs: int) -> None:
    """Takes anything."""


class Caller:
    """Is called like a function."""

    def __call__(self, value: int) -> int:
        return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_call(one, (), {}), "one cannot be called so: missing a required argument: 'value'"),
        (lambda: make_call(one, (1, 2), {}), "too many positional arguments"),
        (
            lambda: make_call(one, (1,), {"wal": "3s"}),
            "keyword argument 'wal'; did you mean the wish `wall`",
        ),
        (lambda: make_call(one, (1,), {"colour": 1}), "unexpected keyword argument 'colour'; nothing was signed"),
        (lambda: make_call(functools.partial(one, 1), (2,), {}), "too many positional arguments"),
        (lambda: make_call(Caller(), (), {}), "missing a required argument"),
        (lambda: make_calls(step, [1, 2]), "missing a required argument: 'index'"),
        (lambda: make_steps(one, 0, 3), "too many positional arguments"),
    ],
)
def test_a_call_that_cannot_work_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(Refused) as refused:
        make()
    assert refused.value.rule == "function.arguments"
    assert words in refused.value.message


def test_what_can_work_or_cannot_be_told_is_sent() -> None:
    for args, kwargs in (((1,), {}), ((), {"value": 1})):
        make_call(one, args, kwargs)
    make_call(lenient, (1, 2), {"three": 3})
    make_call(Caller(), (1,), {})
    make_call(max, (1, 2), {})  # tells no signature
    make_calls(one, [1])
    make_steps(step, 0, 1)


async def test_a_call_that_cannot_work_is_not_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(FakeMarket(), tmp_path, monkeypatch)
    async with AsyncMarket.connect() as market:
        for buy in (market.run(one, cap=1), market.map(step, [1], cap=1), market.train(one, 0, 1, cap=1)):
            with pytest.raises(Refused, match="nothing was signed"):
                await buy
        with pytest.raises(Refused, match="did you mean the wish `memory`"):
            await market.submit(one, 1, cap=1, memroy="1GiB")
    assert fake.submitted == []
