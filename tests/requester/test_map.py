"""Jobs of many segments through the client library: values as they come, what failed, handles, costs, large values."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.protocol.api import Advanced, ProviderView
from broker.protocol.values import split, unpack
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.transactions import Cancel
from requester import AsyncMarket, Hooks, JobEnded, JobFailed, MapResult, Market, News, NoBid, TrainResult, report
from requester.client import buying, following
from requester.client.buying import describe_pythons
from requester.client.costs import read_cost
from requester.client.packing import make_map, pack_function
from requester.client.wishes import Wishes, get_python
from requester.purchase.verify import is_verified
from tests.requester.fakes import Deed, FakeMarket, install
from tests.requester.world import PROVIDER, RIVAL

LIMITS: dict[str, Any] = {"cap": 1, "wall": 10}
REPORTS = b'a\n::report {"segment": 0, "loss": 0.5}\nb\n::report {"segment": 1, "loss": "nan"}\n'


def square(number: int) -> int:
    return number * number


def step(state: Any, index: int) -> Any:
    report(loss=index)
    return state


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    market = FakeMarket(price=1_000, deed=Deed(values=lambda index: index * index))
    return install(market, tmp_path, monkeypatch)


# ---- map ----


async def test_values_come_in_the_order_of_the_items_from_several_providers(fake: FakeMarket) -> None:
    async with AsyncMarket.connect() as market:
        found = await market.map(square, range(7), parallelism=2, **LIMITS)
    assert isinstance(found, MapResult)
    assert found.values == list(found) == [0, 1, 4, 9, 16, 25, 36]
    assert (len(found), found[3], found.failed, found.missing) == (7, 9, {}, ())
    assert found.providers == {PROVIDER.key.hex(): 4, RIVAL.key.hex(): 3}
    # R13: the commission of each lease is floored by itself
    assert (found.cost, found.commission, found.settled) == (4 * 1_000 + 3 * 1_001 + 80 + 60, 140, True)
    assert is_verified(found.verify(fake.genesis))


@pytest.mark.parametrize(("items", "wished", "parallelism"), [(9, None, 4), (2, None, 2), (9, 1, 1), (9, 3, 3)])
async def test_parallelism_is_four_unless_wished_or_fewer_items(
    fake: FakeMarket, items: int, wished: int | None, parallelism: int
) -> None:
    async with AsyncMarket.connect() as market:
        await market.map(square, range(items), parallelism=wished, tolerance=2, **LIMITS)
    spec = fake.submitted[0].spec
    assert (spec.parallelism, spec.tolerance) == (parallelism, 2)


async def test_a_failed_segment_is_told_with_what_came_all_the_same(fake: FakeMarket) -> None:
    """R9: the failed one is paid and ends its range."""
    fake.deed = Deed(cause=Cause.PROGRAM, fails=1, trace="Traceback\nValueError: no\n", values=lambda index: index)
    async with AsyncMarket.connect() as market:
        with pytest.raises(JobFailed, match="segment 1: ValueError: no") as failed:
            await market.map(square, range(6), parallelism=2, **LIMITS)
        part = failed.value.result
        assert isinstance(part, MapResult)
        again = await market.result(part.job, partial=True)
    assert failed.value.cause is Cause.PROGRAM
    assert part.values == again.values == [0, None, None, 3, 4, 5]
    assert (part.failed, part.missing) == ({1: "ValueError: no"}, (2,))
    assert part.cost == 2 * 1_000 + 40 + 3 * 1_001 + 60


async def test_a_failure_that_left_values_says_how_to_get_them(fake: FakeMarket) -> None:
    fake.deed = Deed(cause=Cause.PROGRAM, fails=1, values=lambda index: index)
    words = r"`partial=True`, or `--partial`, gives what came \(1 value\)"
    async with AsyncMarket.connect() as market:
        with pytest.raises(JobFailed, match=words):
            await market.map(square, range(3), parallelism=1, **LIMITS)
        with pytest.raises(JobFailed, match=words):
            await market.train(step, 0, 3, **LIMITS)
        fake.deed = Deed(cause=Cause.PROGRAM, fails=0)
        with pytest.raises(JobFailed) as failed:
            await market.map(square, range(3), parallelism=1, **LIMITS)
    assert "partial" not in str(failed.value)


@pytest.mark.parametrize("tolerance", [0, 1])
async def test_an_item_may_fail_where_that_is_tolerated(fake: FakeMarket, tolerance: int) -> None:
    """R9: the failed one is the last of its lease, so that all others are served."""
    trace = "Traceback\nValueError: no\n"
    fake.deed = Deed(cause=Cause.PROGRAM, fails=2, trace=trace, values=lambda index: index)
    async with AsyncMarket.connect() as market:
        job = market.map(square, range(3), parallelism=1, tolerance=tolerance, **LIMITS)
        if not tolerance:
            with pytest.raises(JobFailed, match="ValueError: no"):
                await job
            return
        found = await job
    assert (found.values, found.failed, found.missing) == ([0, 1, None], {2: "ValueError: no"}, ())
    assert found.came == 2


async def test_tolerance_is_for_failed_items_and_not_for_those_that_nobody_served(fake: FakeMarket) -> None:
    fake.deed = Deed(cause=Cause.PROGRAM, fails=1, values=lambda index: index)
    async with AsyncMarket.connect() as market:
        with pytest.raises(JobFailed) as failed:
            await market.map(square, range(3), parallelism=1, tolerance=2, **LIMITS)
    assert failed.value.result.missing == (2,)


async def test_what_nobody_served_is_missing_and_no_failure_of_the_program(fake: FakeMarket) -> None:
    async with AsyncMarket.connect() as market:
        await market.map(square, range(6), parallelism=2, **LIMITS)
        row = market.list_jobs()[0]
        documents = market.store.load_documents(row.id)
        rest = type(documents)(
            **{name: getattr(documents, name) for name in documents.__struct_fields__}
            | {"leases": documents.leases[:1]}
        )
        market.store.update(row.id, "partly", ("job.partly", "nobody served 3-5 \x1b[2J"), rest)
        with pytest.raises(JobFailed, match=r"3 of 6 segments have no value: nobody served 3-5 \\x1b") as failed:
            await market.result(row.id)
        assert failed.value.cause is Cause.HOST
        assert str(failed.value).startswith("the job is incomplete: 3 of 6")
        told = "3 of 6 segments have no result: 3-5: you cancelled it"
        market.store.update(row.id, "partly", ("job.partly", told), rest)
        with pytest.raises(JobFailed, match=r"incomplete: 3 of 6 segments have no value: 3-5: you cancelled it; "):
            await market.result(row.id)
        assert "a failed segment" not in str(failed.value)
        assert (await market.result(row.id, partial=True)).missing == (3, 4, 5)


async def test_an_output_that_is_no_value_fails_its_item_alone(fake: FakeMarket) -> None:
    fake.deed = Deed(values=lambda index: index)
    original = Deed.pack

    def spoil(deed: Deed, index: int) -> bytes:
        return b"\xc1" if index == 2 else original(deed, index)

    fake.deed.pack = spoil.__get__(fake.deed)  # type: ignore[method-assign]  # one spoiled item
    async with AsyncMarket.connect() as market:
        found = await market.map(square, range(4), partial=True, **LIMITS)
    assert found.values == [0, 1, None, 3]
    assert "cannot be read" in found.failed[2]


# ---- as it comes ----


async def test_news_of_segments_leases_metrics_and_cost(fake: FakeMarket) -> None:
    fake.deed.log = REPORTS
    fake.step = 1
    news: list[News] = []
    async with AsyncMarket.connect() as market:
        found = await market.map(square, range(4), parallelism=2, hooks=Hooks(on_news=news.append), **LIMITS)
    segments = [one for one in news if one.kind == "segments"]
    assert sorted(index for one in segments for index in one.indices) == [0, 1, 2, 3]
    assert {(one.provider, index) for one in segments for index in one.indices} == {
        (PROVIDER.key.hex(), 0), (PROVIDER.key.hex(), 1), (RIVAL.key.hex(), 2), (RIVAL.key.hex(), 3),
    }  # fmt: skip
    assert [one.done for one in segments] == sorted(one.done for one in segments)
    assert segments[-1].cost == found.cost and segments[-1].kept_until > 0
    leases = {(one.provider, one.phase, one.indices) for one in news if one.kind == "lease"}
    assert (RIVAL.key.hex(), "settled", (2, 3)) in leases
    metrics = [one.metrics for one in news if one.kind == "metrics"]
    assert metrics.count({"loss": 0.5}) == metrics.count({"loss": "nan"}) == 2
    assert b"::report" not in b"".join(one.output for one in news)
    assert found.metrics == [{"segment": 0, "loss": 0.5}, {"segment": 1, "loss": "nan"}] * 2
    assert found.log == "a\nb\n" * 2


async def test_output_that_is_told_twice_is_shown_once(fake: FakeMarket) -> None:
    fake.delivers, fake.deed.log = False, b"0123456789\n"
    shown: list[bytes] = []
    async with AsyncMarket.connect() as market:
        hooks = Hooks(on_news=lambda news: shown.append(news.output))
        handle = await market.submit_map(square, [1], hooks=hooks, **LIMITS)
        while not fake.leases:
            await asyncio.sleep(0)
        job = bytes.fromhex(handle.id)
        world = fake.worlds[job][0]
        fake.tell(
            job, *(Advanced(world.now, world.lease, 0, 1, (), start, b"0123456789\n"[start:]) for start in (0, 4))
        )
        fake.deliver(job)
        await handle.result()
    assert b"".join(shown) == b"0123456789\n"


async def test_reports_behind_a_part_that_nobody_saw_are_metrics_and_no_output(fake: FakeMarket) -> None:
    """Whoever takes a job up again begins in the midst of its output."""
    line = b'::report {"segment": 0, "loss": 0.5}\n'
    fake.delivers = False
    news: list[News] = []
    async with AsyncMarket.connect() as market:
        handle = await market.submit_map(square, [1], hooks=Hooks(on_news=news.append), **LIMITS)
        while not fake.leases:
            await asyncio.sleep(0)
        job = bytes.fromhex(handle.id)
        world = fake.worlds[job][0]
        fake.tell(job, Advanced(world.now, world.lease, 0, 1, (), 20, line))
        fake.deliver(job)
        await handle.result()
    assert [one.metrics for one in news if one.kind == "metrics"] == [{"loss": 0.5}]
    assert b"::report" not in b"".join(one.output for one in news)


async def test_a_handle_of_a_job_that_another_market_drives_sees_it_too(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "STORE_SECONDS", 0.001)
    fake.delivers, fake.step = False, 1
    async with AsyncMarket.connect() as driver, AsyncMarket.connect() as onlooker:
        handle = await driver.submit_map(square, range(3), parallelism=1, **LIMITS)
        while not fake.leases:
            await asyncio.sleep(0)
        seen: list[News] = []
        looking = onlooker.job(handle.id)
        board = onlooker.get_board(bytes.fromhex(handle.id))
        with board.listening(Hooks(on_news=seen.append)):
            results = asyncio.ensure_future(_collect(looking.results()))
            await asyncio.sleep(0.01)
            fake.deliver(bytes.fromhex(handle.id))
            assert sorted(await results) == [(0, 0), (1, 1), (2, 4)]
        assert [one.id for one in onlooker.jobs()] == [handle.id]
        assert (
            looking.progress().done == 3
            and looking.cost == read_cost(onlooker.store.load_documents(bytes.fromhex(handle.id))).total
        )


async def _collect(results: Any) -> list[Any]:
    return [one async for one in results]


# ---- train ----


async def test_a_train_gives_its_states_and_its_metrics(fake: FakeMarket) -> None:
    fake.deed = Deed(values=lambda index: {"w": np.full(20_000, index)}, log=REPORTS)
    async with AsyncMarket.connect() as market:
        found = await market.train(step, {"w": np.zeros(20_000)}, 4, **LIMITS)
        assert isinstance(found, TrainResult)
        assert found.state["w"][0] == 3
        assert [state["w"][0] for state in found.states] == [0, 1, 2, 3]
        assert (len(found.states), [one["w"][0] for one in found.states[1:3]]) == (4, [1, 2])
        assert [row["loss"] for row in found.metrics] == [0.5, "nan"]
        with pytest.raises(ValueError, match="read-only"):
            found.state["w"][0] = 1
        copied = await market.result(found.job, copy=True)
        copied.state["w"][0] = 1
    order, spec = fake.submitted[0].order.body, fake.submitted[0].spec
    assert (order.segments, order.start, spec.parallelism) == (4, spec.inputs, 1)
    assert unpack(found.packed)["w"][0] == 3


async def test_a_train_that_fails_keeps_what_was_done(fake: FakeMarket) -> None:
    fake.deed = Deed(cause=Cause.OOM, fails=2, values=lambda index: index)
    async with AsyncMarket.connect() as market:
        with pytest.raises(JobFailed, match="segment 2: out of memory") as failed:
            await market.train(step, 0, 5, **LIMITS)
    part = failed.value.result
    assert (part.state, list(part.states), part.missing) == (1, [0, 1], (3, 4))
    fake.deed = Deed(cause=Cause.OOM, fails=0)
    async with AsyncMarket.connect() as market:
        none = await market.train(step, 0, 5, partial=True, **LIMITS)
        with pytest.raises(Refused) as refused:
            _ = none.state
    assert (refused.value.rule, none.packed) == ("result.missing", b"")


# ---- scripts and folders ----


async def test_scripts_and_folders_are_mapped_by_a_functions_name(fake: FakeMarket, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.py").write_text("from part import double\n")
    (folder / "part.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "one.py").write_text("def step(state, index):\n    return state\n")
    async with AsyncMarket.connect() as market:
        await market.map(f"{folder}:double", [1], **LIMITS)
        await market.train(tmp_path / "one.py", 0, 1, **LIMITS)
        fake.deed = Deed(value={"result": 1, "files": {"a.txt": b"x"}})
        done = await market.run_folder(folder, ("a",), rate=0.5, **LIMITS)
        fake.deed = Deed(value={"result": 1, "files": {"a.txt": b"x"}})
        plain = await market.run_script(tmp_path / "one.py", **LIMITS)
        for call in (market.run_folder(tmp_path / "one.py", **LIMITS), market.run_script(folder, **LIMITS)):
            with pytest.raises(Refused):
                await call
    assert [(one.spec.entry, one.spec.function) for one in fake.submitted] == [
        ("folder", "double"), ("script", "step"), ("folder", ""), ("script", ""),
    ]  # fmt: skip
    assert unpack(fake.blobs[fake.submitted[2].spec.inputs]) == (("a",), {"rate": 0.5})
    assert (done.value, done.files) == (1, {"a.txt": b"x"})
    assert (plain.value, plain.files) == ({"result": 1, "files": {"a.txt": b"x"}}, {})


# ---- large values ----


async def test_large_inputs_and_outputs_travel_as_files_and_tell_how_far_they_are(fake: FakeMarket) -> None:
    usage = Usage(1, 1, 1, bytes_out=400_000)
    fake.deed = Deed(values=lambda index: np.full(50_000, float(index)), usage=usage)
    fake.inline = False
    news: list[News] = []
    items = np.arange(80_000.0).reshape(2, 40_000)
    async with AsyncMarket.connect() as market:
        found = await market.map(square, items, hooks=Hooks(on_news=news.append), **LIMITS)
        assert list(market.store.blobs.folder.glob(".incoming*")) == []
    assert [value[0] for value in found.values] == [0.0, 1.0]
    assert not found.values[0].flags.writeable
    spec = fake.submitted[0].spec
    assert [compute_digest(bytes(item)) for item in split(fake.blobs[spec.inputs])] == list(found.documents.items)
    transfers = {(one.text, one.done) for one in news if one.kind == "transfer"}
    assert ("upload", spec.input_bytes) in transfers
    assert {text for text, _ in transfers} == {"upload", "download"}


async def test_an_output_larger_than_its_record_says_is_fetched_all_the_same(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usage is the provider's word; it only chooses the way."""
    monkeypatch.setattr("requester.client.transfers.TOGETHER_BYTES", 1_000)
    fake.deed = Deed(values=lambda index: bytes(5_000))
    fake.inline = False
    news: list[News] = []
    async with AsyncMarket.connect() as market:
        found = await market.map(square, [1, 2], hooks=Hooks(on_news=news.append), **LIMITS)
    assert found.values == [bytes(5_000)] * 2
    assert [one for one in news if one.kind == "trouble"] == []


# ---- before signing ----


def view(*pythons: str) -> ProviderView:
    return ProviderView("ab", list(pythons), [], "ns", 1, 1, 1, 1, 1, 1, 1, 1)


async def test_a_function_whose_python_nobody_has_is_refused_before_signing(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def offer(self: Any) -> list[ProviderView]:
        return [view("3.9", "3.10")]

    monkeypatch.setattr(buying.Buying, "providers", offer)
    async with AsyncMarket.connect() as market:
        with pytest.raises(Refused, match=r"needs; on offer: 3\.9, 3\.10\..*send a script.*python='3\.10'") as refused:
            await market.map(square, [1], **LIMITS)
        assert refused.value.rule == "order.python"
        (tmp_path / "a.py").write_text("def f(x):\n    return x\n")
        with pytest.raises(Refused, match=r"Choose one: --python 3\.10"):
            await market.map(f"{tmp_path / 'a.py'}", [1], **LIMITS)
        assert market.list_jobs() == []
        await market.map(f"{tmp_path / 'a.py'}:f", [1], python="3.10", **LIMITS)
    assert fake.submitted[0].spec.runtime.python == "3.10"
    assert describe_pythons([], "3.12", fake.submitted[0].spec.entry) == ""
    assert describe_pythons([view("3.12")], "3.12", fake.submitted[0].spec.entry) == ""


async def test_no_bid_says_which_pythons_are_on_offer(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.price = 10**9
    async with AsyncMarket.connect() as market:
        job = await market.sign(make_map(pack_function(square), [1]), Wishes(**LIMITS))

        async def offer() -> list[ProviderView]:
            return [view("3.9")]

        market.providers = offer  # type: ignore[method-assign]  # one fault of one object
        with pytest.raises(NoBid, match=rf"no provider offers Python {get_python()}.*on offer: 3\.9"):
            await market.result(job)

        async def fail() -> list[ProviderView]:
            raise Unavailable("gone", rule="broker.unreachable")

        market.providers = fail  # type: ignore[method-assign]  # one fault of one object
        with pytest.raises(NoBid, match="the lowest price"):
            await market.result(job)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda market: market.map(square, [], **LIMITS), "map.items"),
        (lambda market: market.map(square, [1], colour="red", **LIMITS), "spec.form"),
        (lambda market: market.map(square, [object()], **LIMITS), "value.carry"),
        (lambda market: market.train(step, object(), 2, **LIMITS), "value.carry"),
        (lambda market: market.train(step, 0, 0, **LIMITS), "order.segments"),
        (lambda market: market.train(step, 0, 2, parallelism=2, **LIMITS), "order.kind"),
        (lambda market: market.map("absent.py:f", [1], **LIMITS), "script.file"),
    ],
)
async def test_what_cannot_be_ordered_is_refused_by_name(fake: FakeMarket, call: Any, rule: str) -> None:
    async with AsyncMarket.connect() as market:
        with pytest.raises(Refused) as refused:
            await call(market)
        assert market.list_jobs() == []
    assert refused.value.rule == rule


async def test_estimates_of_each_kind(fake: FakeMarket) -> None:
    async with AsyncMarket.connect() as market:
        run = await market.estimate(square, 3)
        many = await market.estimate(square, items=[1, 2, 3], cap="0.01")
        chain = await market.estimate(step, state=0, steps=5)
        assert market.list_jobs() == []
    assert (run.segments, run.cap, run.likely) == (1, None, 1_020)
    assert (many.segments, many.cap, many.likely, many.median) == (3, 10_000, 3_060, 3_063)
    assert (chain.segments, chain.matching, chain.providers) == (5, 2, 2)


# ---- cancelling ----


async def test_cancel_ends_every_lease_and_stops_the_broker(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def note(cancellation: Any) -> None:
        asked.append(cancellation)

    fake.delivers = False
    async with AsyncMarket.connect() as market:
        market.broker.cancel = note  # type: ignore[method-assign]  # a broker that takes it while leases stand
        handle = await market.submit_map(square, range(4), parallelism=2, **LIMITS)
        while len(fake.leases) < 2:
            await asyncio.sleep(0)
        assert "2 leases" in await handle.cancel()
        assert len([one for one in fake.submitted if isinstance(one, Cancel)]) == 2
        assert len(asked) == 1
        with pytest.raises(JobEnded) as ended:
            await handle.result()
    assert ended.value.rule == "lease.cancelled"


# ---- without await ----


def test_the_blocking_market_has_it_all(fake: FakeMarket, tmp_path: Path) -> None:
    fake.deed.log = REPORTS
    with Market.connect() as market:
        assert market.map(square, [0, 1, 2], **LIMITS).values == [0, 1, 4]
        handle = market.submit_map(square, [0, 1], **LIMITS)
        assert sorted(handle.results()) == [(0, 0), (1, 1)]
        assert handle.result().values == [0, 1]
        assert (handle.is_over, handle.phase, handle.title, handle.progress().done) == (True, "settled", "square", 2)
        assert [row["loss"] for row in handle.metrics()][:2] == [0.5, "nan"]
        assert b"".join(handle.logs()).startswith(b"a\nb\n")
        assert handle.cost == handle.result().cost and handle.signed > 0
        with pytest.raises(Refused):
            handle.cancel()
        assert market.train(step, 0, 2, **LIMITS).state == 1
        assert market.submit_train(step, 0, 2, **LIMITS).result().state == 1
        assert market.submit(square, 3, **LIMITS).result().value == 0
        (tmp_path / "a.py").write_text("result = 1\n")
        assert market.submit_source(tmp_path / "a.py", **LIMITS).result().value == 0
        assert market.job(handle.id[:12]).id == handle.id
        assert {one.id for one in market.jobs()} >= {handle.id}
        assert [one.slots for one in market.providers()] == [2, 2]
        assert market.estimate(square, 3).matching == 2
        assert repr(handle).startswith(f"<job {handle.id[:16]}")


def test_a_job_goes_on_while_its_handle_is_asleep(fake: FakeMarket) -> None:
    """In a notebook nobody awaits between two cells."""
    with Market.connect() as market:
        handle = market.submit_map(square, range(3), **LIMITS)
        end = time.monotonic() + 30
        while not handle.is_over:
            assert time.monotonic() < end, handle.phase
        assert handle.progress().done == 3
