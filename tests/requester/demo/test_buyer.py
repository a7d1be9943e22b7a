"""What a buyer says of its job: the book, the loss by epoch, one JSON line for each piece of news."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from requester.client import News
from requester.demo.buyer import Herald, list_bids, list_losses
from requester.purchase.documents import Documents


def make_documents() -> Documents:
    """The two books of a job that was auctioned twice, with as much in them as is read."""

    def book(number: int, *prices: int) -> Any:
        bids = [SimpleNamespace(body=SimpleNamespace(provider=bytes([price]), price=price)) for price in prices]
        return SimpleNamespace(body=SimpleNamespace(round=number, bids=bids))

    return cast(Documents, SimpleNamespace(books=(book(0, 10, 12), book(1, 11))))


class Store:
    def load_documents(self, job: bytes) -> Documents:
        assert job == b"\x3f"
        return make_documents()


def test_all_bids_of_all_auctions_are_listed() -> None:
    assert list_bids(make_documents()) == [
        {"round": 0, "provider": "0a", "price": 10},
        {"round": 0, "provider": "0c", "price": 12},
        {"round": 1, "provider": "0b", "price": 11},
    ]


def test_losses_come_in_order_of_their_epochs_and_only_numbers_count() -> None:
    rows: list[dict[str, Any]] = [
        {"segment": 2, "loss": 0.1},
        {"segment": 0, "loss": 0.5},
        {"segment": 1, "loss": "nan"},
        {"segment": 3},
    ]
    assert list_losses(rows) == [0.5, 0.1]


def hear(capsys: pytest.CaptureFixture[str], *news: News) -> list[dict[str, Any]]:
    herald = Herald("search", cast(Any, SimpleNamespace(store=Store())))
    for one in news:
        herald(one)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_of_the_news_is_one_line_with_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = hear(
        capsys,
        News("phase", "3f", "running"),
        News("segments", "3f", lease="aa", provider="bb", indices=(3, 4), done=5, total=36, cost=70),
        News("metrics", "3f", lease="aa", provider="bb", indices=(3,), metrics={"loss": 0.5}),
        News("output", "3f", output=b"a\xff\n"),
    )
    assert lines == [
        {"kind": "phase", "name": "search", "job": "3f", "phase": "running"},
        {"kind": "segments", "name": "search", "job": "3f", "lease": "aa", "provider": "bb", "indices": [3, 4],
         "done": 5, "total": 36, "cost": 70},
        {"kind": "metrics", "name": "search", "job": "3f", "lease": "aa", "provider": "bb", "indices": [3],
         "metrics": {"loss": 0.5}},
        {"kind": "output", "name": "search", "job": "3f", "output": "a\ufffd\n"},
    ]  # fmt: skip


def test_the_book_is_told_with_the_first_lease_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = hear(capsys, News("lease", "3f", "awarded", "aa"), News("lease", "3f", "awarded", "ab"))
    assert [line["kind"] for line in lines] == ["lease", "book", "lease"]
    assert [bid["price"] for bid in lines[1]["bids"]] == [10, 12, 11]
