"""The client library against a market in this process: results, errors, and jobs taken up after a kill."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol.values import unpack
from chain.base.errors import Refused, Unavailable
from chain.base.units import MICRO
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Environment
from chain.ledger.transactions import Cancel
from requester import AsyncMarket, JobEnded, JobFailed, Market, NoBid
from requester.client import following, runner
from requester.client.news import Hooks, News
from requester.client.outcomes import JobPending
from requester.client.packing import make_run, pack_function
from requester.client.reading import LEASE_CHECKS, read_outcome
from requester.client.settings import load_requester_settings, open_wallet
from requester.client.wishes import Wishes, make_spec
from requester.purchase import lots
from requester.purchase.checking import CheckFailed
from requester.purchase.checks import BOOK_CHECKS
from requester.purchase.quote import Quote
from requester.purchase.verify import is_verified
from tests.requester import fakes
from tests.requester.fakes import Deed, FakeMarket, install
from tests.requester.world import PROVIDER

WISHES = Wishes(cap=2)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    return install(FakeMarket(), tmp_path, monkeypatch)


def double(number: int) -> int:
    return 2 * number


async def connect() -> AsyncMarket:
    return await AsyncMarket.connect()


async def sign_one(market: AsyncMarket, **wishes: Any) -> bytes:
    return await market.sign(make_run(pack_function(double), (21,), {}), Wishes(**({"cap": 2} | wishes)))


# ---- results ----


async def test_a_function_comes_back_as_a_value_with_its_cost_and_its_proof(fake: FakeMarket) -> None:
    fake.deed.value = {"weights": np.arange(4.0), "accuracy": 0.97}
    async with await connect() as market:
        found = await market.run(double, 21, cap=2)
    assert np.array_equal(found.value["weights"], np.arange(4.0))
    assert (found.cost, found.commission, found.settled) == (1_020_000, 20_000, True)
    assert (found.provider, found.log, found.checks) == (PROVIDER.key, "epoch 1\n", LEASE_CHECKS + len(BOOK_CHECKS))
    verdicts = found.verify(fake.genesis)
    assert is_verified(verdicts), [one for one in verdicts if not one.passed]
    path = load_requester_settings().genesis_path
    assert path is not None
    assert found.verify(path) == found.verify(str(path)) == verdicts


def paint(number: int, *, colour: str) -> str:
    return f"{number} {colour}"


async def test_what_is_sent_is_the_call(fake: FakeMarket) -> None:
    async with await connect() as market:
        await market.run(functools.partial(paint, 3), cap="2", seed=5, title="doubled", colour="red")
    spec = fake.submitted[0].spec
    assert (spec.seed, spec.title, spec.entry) == (5, "doubled", "function")
    assert unpack(fake.blobs[spec.inputs]) == ((), {"colour": "red"})


async def test_the_price_is_seen_before_anything_is_signed(fake: FakeMarket) -> None:
    seen: list[Quote] = []

    def refuse(quote: Quote) -> bool:
        seen.append(quote)
        return False

    async with await connect() as market:
        with pytest.raises(Refused) as refused:
            await market.run(double, 21, cap=2, hooks=Hooks(on_quote=refuse))
        assert market.store.list_jobs() == []
    assert refused.value.rule == "order.declined"
    assert seen[0].cap == 2 * MICRO
    assert fake.submitted == []


async def test_news_come_in_order_and_output_comes_once(fake: FakeMarket) -> None:
    news: list[News] = []
    async with await connect() as market:
        await market.run(double, 21, cap=2, hooks=Hooks(on_news=news.append))
    phases = [one.phase for one in news if one.kind == "phase"]
    assert phases[-1] == "settled"
    assert [one for one in phases if one in {"sent", "announced", "awarded", "running"}] == sorted(
        set(phases) & {"sent", "announced", "awarded", "running"},
        key=["sent", "announced", "awarded", "running"].index,
    )
    assert news[0].kind == "signed"
    assert b"".join(one.output for one in news) == b"epoch 1\n"


# ---- errors ----


FAILURES = [
    (
        Deed(cause=Cause.PROGRAM, trace="Traceback\nValueError: no\n"),
        r"\(program\): ValueError: no; 1.02 credits paid: a failed",
    ),
    (Deed(cause=Cause.PROGRAM), "it left with a status other than 0"),
    (Deed(cause=Cause.OOM, usage=Usage(1, 600 << 20, 1)), "it used 600 MiB of 512 MiB; raise --memory"),
    (Deed(cause=Cause.WALL, usage=Usage(1, 1, 301_000)), "it ran 5.02 min of 5 min; raise --wall"),
    (Deed(cause=Cause.CPU, usage=Usage(301_000, 1, 1)), "it used 5.02 min of 5 min; raise --wall"),
    (Deed(cause=Cause.OUTPUT), "its output exceeds 64 MiB; raise --output"),
    (Deed(cause=Cause.LOG), "it wrote more than 1 MiB"),
    (Deed(cause=Cause.POLICY), "the sandbox forbids"),
    (Deed(cause=Cause.SIGNAL), "a signal ended it"),
]


@pytest.mark.parametrize(("deed", "figure"), FAILURES, ids=[figure for _, figure in FAILURES])
async def test_a_failed_job_says_why_and_is_paid(fake: FakeMarket, deed: Deed, figure: str) -> None:
    """R9."""
    fake.deed = deed
    async with await connect() as market:
        with pytest.raises(JobFailed, match=figure) as failed:
            await market.run(double, 21, cap=2)
        row = market.store.list_jobs()[0]
    assert (failed.value.cause, failed.value.traceback, failed.value.job) == (deed.cause, deed.trace, row.id.hex())
    assert failed.value.cost == 1_020_000
    assert row.phase == "settled"


async def test_nobody_bids_at_this_cap(fake: FakeMarket) -> None:
    fake.price = 3 * MICRO
    async with await connect() as market:
        with pytest.raises(NoBid, match="the lowest price at which someone would have bid is 3 credits") as nobody:
            await market.run(double, 21, cap=2)
    assert nobody.value.lowest == 3 * MICRO


async def test_a_delivery_that_fails_a_check_is_refused_by_its_number(fake: FakeMarket) -> None:
    fake.deed.log = b""
    async with await connect() as market:
        job = await sign_one(market)
        fake.delivers = False
        task = asyncio.ensure_future(market.result(job))
        while job not in fake.worlds:
            await asyncio.sleep(0)
        fake.worlds[job][0].environment = Environment("ns", bytes(32), 1, "openblas")
        fake.deliver(job)
        with pytest.raises(CheckFailed, match="check 31") as failed:
            await task
    assert failed.value.number == 31


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"balance": 0}, {}, "account.unknown"),
    ({"balance": 1_000_000}, {}, "account.funds"),
    ({}, {"cap": None}, "cap.missing"),
    ({}, {"cap": "a lot"}, "units.credits"),
    ({}, {"cap": 0}, "R2.cap"),
    ({}, {"memory": "much"}, "units.size"),
    ({}, {"wall": "soon"}, "units.span"),
    ({}, {"level": "none"}, "spec.form"),
    ({}, {"packages": ("../numpy",)}, "spec.form"),
    ({}, {"seed": -1}, "spec.form"),
]


@pytest.mark.parametrize(("market", "wishes", "rule"), REFUSALS, ids=[row[2] for row in REFUSALS])
async def test_what_cannot_be_signed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market: dict[str, Any], wishes: dict[str, Any], rule: str
) -> None:
    install(FakeMarket(**market), tmp_path, monkeypatch)
    async with await connect() as opened:
        with pytest.raises(Refused) as refused:
            await sign_one(opened, **wishes)
        assert opened.store.list_jobs() == []
    assert refused.value.rule == rule


async def test_arguments_and_functions_that_cannot_be_carried_are_named(fake: FakeMarket) -> None:
    async with await connect() as market:
        with pytest.raises(Refused, match=r"arguments\[0\]\[0\]: a .*lock can't be carried"):
            await market.run(double, threading.Lock(), cap=2)
        lock = threading.Lock()
        with pytest.raises(Refused, match="can't be sent"):
            await market.run(lambda: lock, cap=2)
        with pytest.raises(Refused, match="wishes"):
            await market.run(double, 1, cap=2, cores="many")


@pytest.mark.parametrize(("fault", "part"), [("broker", "tally-broker run"), ("chain", "tally-chain run")])
async def test_a_part_that_is_not_running_is_named_with_what_to_start(fake: FakeMarket, fault: str, part: str) -> None:
    fake.faults.add(fault)
    with pytest.raises(Unavailable, match=part):
        await connect()


async def test_parts_of_two_chains_are_refused(fake: FakeMarket) -> None:
    async with await connect() as market:
        market._info = None
        original = market.chain.info

        async def other() -> Any:
            info = await original()
            return type(info)(**{**{name: getattr(info, name) for name in info.__struct_fields__}, "chain": "00" * 32})

        market.chain.info = other  # type: ignore[method-assign]  # one fault of one object
        with pytest.raises(Refused) as refused:
            await market.check()
    assert refused.value.rule == "chain.other"


async def test_a_node_of_another_chain_than_the_genesis_file_is_refused(fake: FakeMarket, tmp_path: Path) -> None:
    path = tmp_path / "requester" / "genesis.json"
    path.write_text(path.read_text().replace('"test"', '"other"'))
    with pytest.raises(Refused) as refused:
        await connect()
    assert refused.value.rule == "chain.genesis"
    path.unlink()
    await (await connect()).close()


async def test_a_greedy_broker_is_refused_before_signing(fake: FakeMarket) -> None:
    fake.commission = 201
    async with await connect() as market:
        with pytest.raises(Refused) as refused:
            await sign_one(market)
    assert refused.value.rule == "order.commission"


async def test_an_output_the_broker_does_not_give_is_asked_for_again(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "FIRST_RETRY_MS", 1)
    fake.inline = False
    kept: dict[bytes, bytes] = {}

    def lose(one: News) -> None:
        if one.rule == "blob.missing":
            fake.blobs |= kept
        elif not kept and fake.leases:
            kept.update(fake.blobs)
            fake.blobs.clear()

    async with await connect() as market:
        assert (await market.run(double, 21, cap=2, hooks=Hooks(on_news=lose))).value == 42
    assert kept


async def test_blobs_are_fetched_once_the_broker_is_back(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "FIRST_RETRY_MS", 1)
    fake.inline = False
    fake.faults.add("broker.blobs")

    def come_back(one: News) -> None:
        if one.rule == "broker.unavailable":
            fake.faults.clear()

    async with await connect() as market:
        assert (await market.run(double, 21, cap=2, hooks=Hooks(on_news=come_back))).value == 42


async def test_an_order_the_broker_refuses_ends_the_job_with_its_rule(fake: FakeMarket) -> None:
    async def refuse(submission: Any) -> bytes:
        raise Refused("pay in first", rule="R12.funds")

    async with await connect() as market:
        market.broker.submit = refuse  # type: ignore[method-assign]  # one fault of one object
        with pytest.raises(JobEnded, match="pay in first") as ended:
            await market.run(double, 21, cap=2)
    assert (ended.value.phase, ended.value.rule) == ("rejected", "R12.funds")


async def test_a_result_that_is_no_packed_value_is_refused(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "pack", lambda _value: b"\xc1")
    async with await connect() as market:
        with pytest.raises(JobEnded) as ended:
            await market.run(double, 21, cap=2)
    assert ended.value.rule == "result.form"


async def test_a_settled_job_without_its_proof_is_not_verified(fake: FakeMarket) -> None:
    async with await connect() as market:

        async def lose(tx: bytes) -> Any:
            raise Refused("no such transaction", rule="chain.unknown")

        market.chain.proof = lose  # type: ignore[method-assign]  # one fault of one object
        found = await market.run(double, 21, cap=2)
    assert found.settled
    assert [one.number for one in found.verify(fake.genesis) if not one.passed and not one.skipped] == [50]


async def test_a_result_that_vanished_from_the_store_says_so(fake: FakeMarket, tmp_path: Path) -> None:
    async with await connect() as market:
        found = await market.run(double, 21, cap=2)
        row = market.store.get(bytes.fromhex(found.job))
        market.store.blobs.close()
        (tmp_path / "requester" / "blobs" / "small.db").unlink()
        with pytest.raises(JobEnded) as ended:
            read_outcome(market.store, row)
    assert ended.value.rule == "result.missing"


# ---- killed, and taken up again ----


async def test_signed_and_killed_before_sending_the_job_is_taken_up(fake: FakeMarket) -> None:
    async with await connect() as market:
        job = await sign_one(market)
    assert fake.submitted == []
    async with await connect() as market:
        assert market.store.list_jobs()[0].phase == "signed"
        assert (await market.result(job)).value == 42
        assert (await market.result(job)).value == 42
    assert len(fake.submitted) == 1


async def test_killed_while_the_job_runs_the_next_command_accepts(fake: FakeMarket) -> None:
    fake.delivers = False
    async with await connect() as market:
        job = await sign_one(market)
        task = asyncio.ensure_future(market.result(job))
        while not fake.leases:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(JobPending):
            read_outcome(market.store, market.store.get(job))
    fake.deliver(job)
    async with await connect() as market:
        found = await market.result(job)
    assert (found.value, found.settled) == (42, True)
    assert len(fake.submitted) == 1


async def test_the_broker_dies_before_the_acceptance_and_the_requester_settles(fake: FakeMarket) -> None:
    fake.faults.add("broker.accept")
    async with await connect() as market:
        found = await market.run(double, 21, cap=2)
    assert found.settled
    assert is_verified(found.verify(fake.genesis))


async def test_the_provider_never_settles_and_the_requester_does(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "SETTLE_AFTER_MS", 1)
    fake.settles = False
    async with await connect() as market:
        assert (await market.run(double, 21, cap=2)).settled


async def test_long_polls_go_on_after_the_other_side_was_gone(
    fake: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 0.001)
    fake.faults |= {"broker.events", "chain.events"}
    news: list[News] = []

    def come_back(one: News) -> None:
        news.append(one)
        if {"broker.events.unreachable", "chain.events.unreachable"} <= {item.rule for item in news}:
            fake.faults.clear()

    async with await connect() as market:
        assert (await market.run(double, 21, cap=2, hooks=Hooks(on_news=come_back))).settled


async def test_two_at_once_one_drives_and_one_looks_on(fake: FakeMarket) -> None:
    fake.delivers = False
    async with await connect() as first, await connect() as second:
        job = await sign_one(first)
        driving = asyncio.ensure_future(first.result(job))
        while not fake.leases:
            await asyncio.sleep(0)
        looking = asyncio.ensure_future(second.result(job))
        await asyncio.sleep(0)
        fake.deliver(job)
        assert (await driving).value == (await looking).value == 42
    assert len(fake.submitted) == 1


async def test_who_looks_on_takes_over_when_the_other_dies(fake: FakeMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "STORE_SECONDS", 0.001)
    fake.delivers = False
    async with await connect() as first, await connect() as second:
        job = await sign_one(first)
        driving = asyncio.ensure_future(first.result(job))
        while not fake.leases:
            await asyncio.sleep(0)
        seen: list[News] = []
        looking = asyncio.ensure_future(second.result(job, Hooks(on_news=seen.append)))
        while not seen:
            await asyncio.sleep(0)
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
        fake.deliver(job)
        assert (await looking).value == 42


# ---- other calls ----


async def test_cancelling_before_and_after_the_lease_opened(fake: FakeMarket) -> None:
    fake.bid = False
    async with await connect() as market:
        job = await sign_one(market)
        await market.send(job)
        assert "withdrawn" in await market.cancel(job)
        with pytest.raises(JobEnded) as ended:
            await market.result(job)
        assert ended.value.phase == "withdrawn"
        with pytest.raises(Refused) as refused:
            await market.cancel(job)
        assert refused.value.rule == "job.over"
        fake.bid, fake.delivers = True, False
        job = await sign_one(market)
        await market.send(job)
        assert "cancelling fee" in await market.cancel(job)
        assert isinstance(fake.submitted[-1], Cancel)
        open_one = next(one for one in fake.leases.values() if one.order == job.hex())
        fake.leases[bytes.fromhex(open_one.id)] = msgspec.structs.replace(open_one, state="cancelling", locked=1)
        assert "cancelled already" in await market.cancel(job.hex()[:16])
        assert len([one for one in fake.submitted if isinstance(one, Cancel)]) == 1
        with pytest.raises(JobEnded, match="cancelling fee") as ended:
            await market.result(job)
        assert ended.value.rule == "lease.cancelled"


async def test_logs_of_a_running_and_of_a_finished_job(fake: FakeMarket) -> None:
    async with await connect() as market:
        job = await sign_one(market)
        await market.send(job)
        assert b"".join([chunk async for chunk in market.logs(job)]) == b"epoch 1\n"
        await market.result(job)
        fake.faults.add("broker.events")
        assert b"".join([chunk async for chunk in market.logs(job)]) == b"epoch 1\n"


async def test_a_job_of_another_key_is_not_driven(fake: FakeMarket, tmp_path: Path) -> None:
    async with await connect() as market:
        job = await sign_one(market)
    settings = load_requester_settings()
    async with AsyncMarket(settings, PROVIDER) as other:
        with pytest.raises(Refused) as refused:
            await other.result(job)
    assert refused.value.rule == "job.owner"


def test_no_key_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_HOME", str(tmp_path))
    with pytest.raises(Refused, match="tally wallet new"):
        open_wallet(load_requester_settings())


def test_the_blocking_market_works_where_a_loop_runs_already(fake: FakeMarket) -> None:
    async def notebook() -> Any:
        with Market.connect() as market:
            found = market.run(double, 21, cap=2)
            for job in (found.job[:12], found.job, bytes.fromhex(found.job)):
                assert market.result(job).value == found.value
            with pytest.raises(Refused) as over:
                market.cancel(bytes.fromhex(found.job))
            assert over.value.rule == "job.over"
            assert [row.phase for row in market.jobs()] == ["settled"]
            assert market.account().balance == fake.balance
            market.close()
            return found.value

    assert asyncio.run(notebook()) == 42


def test_functions_of_a_package_go_along_by_value() -> None:
    work = make_run(pack_function(double), (1,), {})
    assert b"tests.requester.test_market" not in work.code.blob or b"_make_function" in work.code.blob
    spec = make_spec(work, WISHES)
    assert spec.code_bytes == len(work.code.blob)
    assert spec.title == "double"
