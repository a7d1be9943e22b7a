"""Who fits an order, and what is said when nobody does: one row per clause (design.md section 4)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from broker.auction.estimate import estimate
from broker.auction.explanation import explain
from broker.auction.matching import (
    MAX_MISFITS,
    Survey,
    compute_duration,
    compute_list_price,
    find_mismatches,
    iterate_reasons,
    show_bytes,
    show_cores,
    show_span,
    survey,
)
from broker.protocol.jobs import Level, Resources, Runtime
from broker.protocol.messages import Offer, Reason, Tariff
from chain.base.keys import Signer
from chain.base.units import MAX_INT
from chain.ledger.terms.agreement import Kind
from tests.broker.world import (
    BROKER,
    NOW,
    PROVIDERS,
    REQUESTER,
    RESOURCES,
    make_bid,
    make_decline,
    make_offer,
    make_order,
    make_spec,
)

GIB = 1 << 30
LEFT = 200_000

CLAUSES: list[tuple[Reason, dict[str, Any], dict[str, Any], dict[str, Any], int, str]] = [
    (Reason.RUNTIME, {"runtimes": (Runtime("3.12", ("numpy",)),)}, {}, {}, 0, "needs Python 3.11; here is 3.12"),
    (Reason.RUNTIME, {"runtimes": ()}, {}, {}, 0, "here is none"),
    (Reason.RUNTIME, {"runtimes": (Runtime("3.11", ()),)}, {}, {}, 0, "needs the package numpy"),
    (
        Reason.MEMORY,
        {"memory_bytes": 20 * GIB},
        {"resources": replace(RESOURCES, memory_bytes=24 * GIB)},
        {},
        20 * GIB,
        "asks for 24 GiB of memory; at most 20 GiB here",
    ),
    (Reason.CORES, {"millicores": 999}, {}, {}, 999, "asks for 1 core; at most 0.999 cores here"),
    (Reason.LEVEL, {"level": Level.NS}, {"level": Level.NS_CGROUP}, {}, 0, "asks for isolation ns+cgroup; ns here"),
    (Reason.WALL, {"segment_wall": 59_999}, {}, {}, 59_999, "a segment may take 60 s; at most 59.999 s here"),
    (Reason.BUSY, {"slots": 0}, {}, {"deadline": NOW + 10**6}, 0, "takes no jobs"),
    (
        Reason.DEADLINE,
        {},
        {},
        {"deadline": NOW + 89_999},
        90_000,
        "with 2 lanes; the deadline is 89.999 s away",
    ),
    (Reason.BOND, {"bond_free": 0}, {}, {}, 0, "has no bond that is free"),
]


@pytest.mark.parametrize("row", CLAUSES, ids=[f"{number}-{row[0]}" for number, row in enumerate(CLAUSES)])
def test_each_clause_fails_alone_and_names_the_nearest(row: tuple[Any, ...]) -> None:
    reason, offer, spec_changes, order_changes, nearest, text = row
    spec = make_spec(**spec_changes)
    found = find_mismatches(make_offer(**offer), make_order(spec=spec, **order_changes), spec, NOW)
    assert [(one.reason, one.nearest) for one in found] == [(reason, nearest)]
    assert text in found[0].text


def test_every_reason_that_an_offer_can_show_has_a_clause() -> None:
    assert set(iterate_reasons()) == set(Reason) - {Reason.PRICE, Reason.POLICY}


@pytest.mark.parametrize(
    ("offer", "order"),
    [
        ({}, {}),
        ({"memory_bytes": RESOURCES.memory_bytes, "millicores": 1_000, "segment_wall": 60_000, "level": Level.NS}, {}),
        ({"slots": 1}, {"deadline": NOW + 90_000}),
        ({"bond_free": 0}, {"damages": 0}),
    ],
    ids=["ample", "just enough", "just in time", "no damages, no bond"],
)
def test_what_is_just_enough_fits(offer: dict[str, Any], order: dict[str, Any]) -> None:
    assert find_mismatches(make_offer(**offer), make_order(**order), make_spec(), NOW) == ()


@pytest.mark.parametrize(("segments", "fits"), [(None, False), (3, False), (2, True)], ids=["all", "three", "two"])
def test_a_bidder_must_be_able_to_serve_the_longest_span_on_offer(segments: int | None, fits: bool) -> None:
    """Among how many a map will be divided nobody knows before the close."""
    order, spec = make_order(segments=4, deadline=NOW + 150_000), make_spec(kind=Kind.MAP, parallelism=4)
    offer = make_offer(slots=1)
    assert (find_mismatches(offer, order, spec, NOW, segments) == ()) is fits
    assert (survey([offer], order, spec, NOW, segments).matching != ()) is fits
    assert compute_duration(order, 1, segments) == 30_000 + (segments or 4) * 60_000


PRICES: list[tuple[str, Tariff, Resources, int, int]] = [
    ("base alone", Tariff(7, 0, 0), RESOURCES, 60_000, 7),
    ("one core for a minute", Tariff(0, 10, 0), RESOURCES, 60_000, 600),
    ("half a core", Tariff(0, 10, 0), replace(RESOURCES, millicores=500), 60_000, 300),
    ("a GiB for a minute", Tariff(0, 0, 2), replace(RESOURCES, memory_bytes=1 << 30), 60_000, 120),
    ("a quarter of it", Tariff(0, 0, 2), RESOURCES, 60_000, 30),
    ("rounded up, each by itself", Tariff(1, 1, 1), replace(RESOURCES, memory_bytes=1), 1, 3),
    ("nothing", Tariff(0, 0, 0), RESOURCES, 60_000, 0),
]


@pytest.mark.parametrize(
    ("tariff", "resources", "wall", "price"), [row[1:] for row in PRICES], ids=[row[0] for row in PRICES]
)
def test_list_prices(tariff: Tariff, resources: Resources, wall: int, price: int) -> None:
    assert compute_list_price(tariff, resources, wall) == price


def offer_at(number: int, base: int, **changes: Any) -> Offer:
    return make_offer(signer=PROVIDERS[number], prices=Tariff(base, 0, 0), **changes)


def test_an_estimate_names_lowest_and_median() -> None:
    offers = [offer_at(number, base) for number, base in enumerate((40, 10, 30, 20))]
    found = estimate(offers, make_order(), make_spec(), NOW)
    assert (found.matching, found.providers, found.lowest, found.median, found.advice) == (4, 4, 10, 20, "")
    assert estimate(offers[:3], make_order(), make_spec(), NOW).median == 30


ADVICE: list[tuple[str, list[Offer], str]] = [
    ("nobody is there", [], "no provider is connected"),
    ("too little memory", [offer_at(0, 5, memory_bytes=1)], "ask for 1 bytes of memory instead of 256 MiB"),
    ("one of two fits", [offer_at(0, 5), offer_at(1, 5, millicores=999)], "ask for 0.999 cores"),
    ("all too dear", [offer_at(0, 2_000_001)], "raise the limit"),
]


@pytest.mark.parametrize(("offers", "advice"), [row[1:] for row in ADVICE], ids=[row[0] for row in ADVICE])
def test_an_estimate_says_what_would_bring_more(offers: list[Offer], advice: str) -> None:
    found = estimate(offers, make_order(), make_spec(), NOW)
    assert advice in found.advice, found.advice


def test_a_price_that_is_no_amount_is_left_out() -> None:
    wild = make_offer(signer=PROVIDERS[1], prices=Tariff(MAX_INT, MAX_INT, MAX_INT))
    found = estimate([offer_at(0, 5), wild], make_order(), make_spec(), NOW)
    assert (found.matching, found.lowest, found.median) == (2, 5, 5)
    assert estimate([wild], make_order(), make_spec(), NOW).lowest == 0


def test_survey_leaves_out_parties_and_what_has_run_out() -> None:
    offers = [
        make_offer(),
        make_offer(signer=PROVIDERS[1], memory_bytes=1),
        make_offer(signer=PROVIDERS[2], valid_until=NOW - 1),
        make_offer(signer=REQUESTER),
        make_offer(signer=BROKER),
    ]
    found = survey(offers, make_order(), make_spec(), NOW)
    assert found.matching == (PROVIDERS[0].key,)
    assert [one.provider for one in found.misfits] == [PROVIDERS[1].key]


def test_survey_is_bounded() -> None:
    offers = [make_offer(signer=Signer(number.to_bytes(32)), slots=0) for number in range(MAX_MISFITS + 5)]
    assert len(survey(offers, make_order(), make_spec(), NOW).misfits) == MAX_MISFITS


@pytest.mark.parametrize(("segments", "lanes", "rounds"), [(1, 1, 1), (10, 3, 4), (9, 3, 3), (1, 8, 1), (5, 0, 5)])
def test_duration_counts_whole_rounds(segments: int, lanes: int, rounds: int) -> None:
    assert compute_duration(make_order(segments=segments), lanes) == 30_000 + rounds * 60_000


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (500 << 30, "500 GiB"),
        ((2 << 30) - 1, "1.999 GiB"),
        (18_880_000_000, "17.58 GiB"),
        (1023 << 20, "1023 MiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_bytes_for_people(size: int, shown: str) -> None:
    assert show_bytes(size) == shown


NOBODY = Survey((), ())


def explain_to(found: Survey, declines: Any = (), bids: Any = (), spec_changes: Any = (), **order: Any) -> Any:
    spec = make_spec(**dict(spec_changes))
    return explain(make_order(spec=spec, **order), spec, found, declines, bids)


def test_the_lowest_price_comes_first() -> None:
    order = make_order()
    declines = [
        make_decline(order, PROVIDERS[0], Reason.BUSY),
        make_decline(order, PROVIDERS[1], Reason.PRICE, 2_500_000),
        make_decline(order, PROVIDERS[2], Reason.PRICE, 2_250_000),
    ]
    why = explain_to(NOBODY, declines)
    assert why.lowest == 2_250_000
    assert why.text.startswith("the lowest price at which someone would have bid is 2.25 credits per segment")


def test_a_bid_above_the_limit_names_a_price_too() -> None:
    assert explain_to(NOBODY, (), [make_bid(make_order(), price=2_000_001).body]).lowest == 2_000_001


def test_24_gib_asked_and_20_on_offer_prints_that_change() -> None:
    spec_changes = {"resources": replace(RESOURCES, memory_bytes=24 * GIB)}
    spec = make_spec(**spec_changes)
    offers = [make_offer(memory_bytes=20 * GIB), make_offer(signer=PROVIDERS[1], memory_bytes=16 * GIB)]
    found = survey(offers, make_order(spec=spec), spec, NOW)
    text = explain_to(found, spec_changes=spec_changes).text
    assert "none of 2 providers fits" in text
    assert "ask for 20 GiB of memory instead of 24 GiB" in text


def test_fewer_changes_go_before_smaller_ones() -> None:
    offers = [
        make_offer(memory_bytes=RESOURCES.memory_bytes - 1, millicores=999),
        make_offer(signer=PROVIDERS[1], millicores=500),
    ]
    found = survey(offers, make_order(), make_spec(), NOW)
    assert "ask for 0.5 cores instead of 1 core" in explain_to(found).text


TEXTS: list[tuple[Reason, int, str]] = [
    (Reason.WALL, 30_000, "limit a segment (wall) to 30 s instead of 60 s"),
    (Reason.DEADLINE, 95_000, "put the deadline (within) at least 95 s ahead"),
    (Reason.LEVEL, 0, "ask for isolation (level) ns"),
    (Reason.BUSY, 0, "try again later"),
    (Reason.BUSY, 700, "put the deadline (within) 1 s later"),
    (Reason.POLICY, 0, "policy: no strangers"),
    (Reason.MEMORY, 0, "memory: no strangers"),
    (Reason.RUNTIME, 0, "ask for another Python (python) or for fewer packages (packages): no strangers"),
]


@pytest.mark.parametrize(("reason", "nearest", "text"), TEXTS)
def test_each_reason_has_words(reason: Reason, nearest: int, text: str) -> None:
    declines = [make_decline(make_order(), reason=reason, nearest=nearest, text="no strangers")]
    why = explain_to(NOBODY, declines)
    assert (why.lowest, text in why.text) == (0, True), why.text


@pytest.mark.parametrize(
    ("runtime", "change"),
    [
        (Runtime("3.12", ("numpy",)), "ask for another Python (python): needs Python 3.11; here is 3.12"),
        (Runtime("3.11", ()), "do without the package numpy"),
    ],
)
def test_a_runtime_that_nobody_has_says_what_to_change(runtime: Runtime, change: str) -> None:
    found = survey([make_offer(runtimes=(runtime,))], make_order(), make_spec(), NOW)
    assert explain_to(found).text == f"the only provider does not fit; the smallest change: {change}"


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "0 s"),
        (250, "0.25 s"),
        (90_000, "90 s"),
        (3_600_000, "60 min"),
        (172_800_000, "48 h"),
        (3_600_001, "3600.001 s"),
    ],
)
def test_spans_for_people_are_exact(milliseconds: int, shown: str) -> None:
    """They are said as what would do; a rounded one might not."""
    assert show_span(milliseconds) == shown


@pytest.mark.parametrize(("millicores", "shown"), [(1_000, "1 core"), (2_000, "2 cores"), (1, "0.001 cores")])
def test_cores_for_people(millicores: int, shown: str) -> None:
    assert show_cores(millicores) == shown


def test_a_decline_goes_before_what_the_offer_says() -> None:
    found = survey([make_offer(slots=0)], make_order(), make_spec(), NOW)
    declines = [make_decline(make_order(), reason=Reason.POLICY, text="closed on Sundays")]
    assert "closed on Sundays" in explain_to(found, declines).text


def test_nobody_and_the_silent() -> None:
    assert "no provider is connected" in explain_to(NOBODY).text
    assert "1 matching provider did not answer" in explain_to(Survey((PROVIDERS[0].key,), ())).text
