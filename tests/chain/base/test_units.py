"""R13 and R18: amounts are integers in 0..2^63-1, shares round down, texts say exactly what they hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.units import BPS, MAX_INT, MICRO, checked, compute_share, format_credits, parse_credits

AMOUNTS = st.integers(0, MAX_INT)


@given(AMOUNTS)
def test_every_amount_survives_its_text(amount: int) -> None:
    text = format_credits(amount)
    assert parse_credits(text) == parse_credits(f" {text}\n") == amount
    assert "." not in text or not text.endswith("0")


@given(st.integers(0, 10**12), st.integers(0, 999_999))
def test_a_text_says_what_it_holds(whole: int, micro: int) -> None:
    assert parse_credits(f"{whole}.{micro:06d}") == whole * MICRO + micro
    assert format_credits(-(whole * MICRO + micro) - 1).startswith("-")


TEXTS = [(0, "0"), (1, "0.000001"), (MICRO, "1"), (1_500_000, "1.5"), (10 * MICRO, "10"), (100_000, "0.1"),
         (-1, "-0.000001"), (-2 * MICRO, "-2"), (MAX_INT, "9223372036854.775807")]  # fmt: skip


@pytest.mark.parametrize(("amount", "text"), TEXTS)
def test_known_texts(amount: int, text: str) -> None:
    assert format_credits(amount) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".5", "1.0000001", "-1", "+1", "1e3", "1,5", "1_000", "0x1", "1 5", "NaN", "inf", "1.5.0", "١٢",
     "1.٥", "１", "12345678901234", "one"],
)  # fmt: skip
def test_no_other_form_is_taken(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_credits(text)
    assert refused.value.rule == "units.credits"


@pytest.mark.parametrize("text", ["9223372036854.775808", "9999999999999"])
def test_a_text_beyond_the_range_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_credits(text)
    assert refused.value.rule == "R18.range"


@pytest.mark.parametrize("value", [-1, MAX_INT + 1, 2**64, True, False, 1.0, "1", None, b"1"])
def test_a_value_outside_the_range_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        checked(value, "price")
    assert refused.value.rule == "R18.range"
    assert "price" in refused.value.message


@pytest.mark.parametrize("value", [0, 1, MAX_INT])
def test_a_value_in_the_range_is_given_back(value: int) -> None:
    assert checked(value) == value


@given(AMOUNTS, st.integers(0, BPS))
def test_a_share_rounds_down_and_never_exceeds_the_whole(amount: int, bps: int) -> None:
    share = compute_share(amount, bps)
    assert 0 <= share <= amount
    assert share * BPS <= amount * bps < (share + 1) * BPS
    assert compute_share(amount, BPS) == amount


def test_a_share_beyond_the_range_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        compute_share(MAX_INT, BPS + 1)
    assert refused.value.rule == "R18.range"
    with pytest.raises(Refused):
        compute_share(-1, BPS)


@pytest.mark.parametrize("kind", [Refused, Fault, Unavailable])
def test_an_error_carries_its_rule_and_shows_it(kind: type[TallyError]) -> None:
    error = kind("do this instead", rule="R0.example")
    assert isinstance(error, TallyError)
    assert (error.rule, error.message, str(error)) == ("R0.example", "do this instead", "do this instead [R0.example]")
    assert sum(issubclass(kind, one) for one in (Refused, Fault, Unavailable)) == 1
