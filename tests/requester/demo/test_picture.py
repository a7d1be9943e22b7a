"""The live picture: it adds up what the buyers say, says phases at once and progress at most once a second, and shows
nobody's words unescaped."""

from __future__ import annotations

from typing import Any

import pytest

from chain.rpc.schema import ChainInfo
from requester.demo.picture import Picture

NAMES = {"aa" * 32: "ada", "bb" * 32: "bell", "cc" * 32: "cray"}
ADA, BELL, CRAY = NAMES
INFO = ChainInfo(
    version=1, software="", chain="", name="", height=57, time=0, seats=1, fee=0, deposit=0, min_bond=0, private=True
)


@pytest.fixture
def picture() -> Picture:
    found = Picture(NAMES, started=100.0)
    tell(found, "order", job_kind="map", segments=36)
    return found


def tell(picture: Picture, kind: str, now: float = 101.0, **line: Any) -> list[str]:
    return picture.hear("alice", {"kind": kind, "name": "search", **line}, now)


def draw(picture: Picture) -> str:
    return "\n".join(picture.draw(104.5))


def test_an_order_and_each_phase_are_said_and_shown(picture: Picture) -> None:
    assert tell(picture, "phase", phase="announced") == ["search   announced"]
    assert tell(picture, "phase", phase="partly", text="3 of 36 failed") == ["search   partly: 3 of 36 failed"]
    assert "alice  map    search  partly" in draw(picture)


def test_bids_are_shown_cheapest_first_by_name_and_said_once(picture: Picture) -> None:
    bids = [{"round": 0, "provider": key, "price": price} for key, price in ((CRAY, 300), (ADA, 100), (BELL, 110))]
    said = tell(picture, "book", bids=bids)
    assert said == ["search   bids per segment: ada 0.0001, bell 0.00011, cray 0.0003"]
    assert tell(picture, "book", bids=bids) == []
    assert "bids per segment: ada 0.0001, bell 0.00011, cray 0.0003" in draw(picture)


def test_segments_are_counted_by_provider(picture: Picture) -> None:
    tell(picture, "segments", provider=ADA, indices=[0, 1, 2], done=3, total=36, cost=1000)
    tell(picture, "segments", provider=BELL, indices=[18, 19], done=5, total=36, cost=2000)
    text = draw(picture)
    assert "5 of 36" in text
    assert "cost so far 0.002 credits" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["segments"] == ["ada", "bell"]
    assert any(line.split() == ["search", "3", "2"] for line in text.splitlines())


def test_what_is_told_counts_before_it_is_verified_but_never_beyond_the_job(picture: Picture) -> None:
    tell(picture, "progress", lease="l1", done=10)
    tell(picture, "progress", lease="l2", done=8)
    tell(picture, "progress", lease="l1", done=11)
    assert picture.jobs["search"].progress == 19
    tell(picture, "progress", lease="l1", done=999)
    assert picture.jobs["search"].progress == 36


def test_progress_is_said_at_most_once_a_second(picture: Picture) -> None:
    said = [tell(picture, "progress", 101 + step / 10, lease="l", done=1 + step) for step in range(25)]
    assert [texts[0] for texts in said if texts] == [
        "search   1 of 36 segments", "search   11 of 36 segments", "search   21 of 36 segments",
    ]  # fmt: skip


def test_a_lease_is_said_when_it_is_new_or_went_wrong(picture: Picture) -> None:
    lease: dict[str, Any] = {"lease": "l", "provider": ADA, "indices": list(range(18))}
    assert tell(picture, "lease", phase="awarded", **lease) == ["search   ada gets segments 0..17"]
    assert tell(picture, "lease", phase="open", **lease) == []
    assert tell(picture, "lease", phase="expired", **lease) == ["search   ada with segments 0..17: expired"]


def test_metrics_are_shown_and_the_loss_of_a_training_as_a_curve(picture: Picture) -> None:
    picture.hear("bob", {"kind": "order", "name": "train", "job_kind": "train", "segments": 30}, 101)
    for epoch in range(8):
        line = {"kind": "metrics", "name": "train", "indices": [epoch], "metrics": {"loss": float(8 - epoch)}}
        picture.hear("bob", line, 101)
    text = draw(picture)
    assert "loss █▇▆▅▄▃▂▁" in text
    assert "loss 1" in text


def test_words_of_others_are_escaped(picture: Picture) -> None:
    tell(picture, "metrics", indices=[0], metrics={"loss": "\x1b[2J\n"})
    said = tell(picture, "output", output="one\x1b[31m\r\ntwo\u202e\n")
    said += tell(picture, "trouble", text="bad\x1b[A")
    said += tell(picture, "phase", phase="ended", text="\x07")
    said += picture.hear("alice", {"kind": "failed", "text": "\x1b[0m"}, 101)
    shown = draw(picture) + "".join(said)
    assert not any(ord(character) < 32 and character != "\n" for character in shown)
    assert "\u202e" not in shown
    assert "search   | one\\x1b[31m" in said


def test_the_chain_and_the_time_stand_at_the_top(picture: Picture) -> None:
    assert "chain" not in picture.draw(104.5)[0]
    picture.chain = INFO
    assert picture.draw(104.5)[0].split("cost")[0].split() == [
        "tallystick", "4.5", "s", "chain", "at", "block", "57,", "1", "seat(s)",
    ]  # fmt: skip


def test_the_last_lines_stand_at_the_foot(picture: Picture) -> None:
    for number in range(20):
        picture.say(f"line {number}")
    assert picture.draw(104.5)[-1] == "  line 19"
    assert "line 10" not in draw(picture)


def test_a_bought_job_is_full_with_the_receipts_counts(picture: Picture) -> None:
    tell(picture, "segments", provider=ADA, indices=[0], done=1, total=36)
    said = tell(picture, "bought", settled=True, providers={ADA: 18, BELL: 18}, cost=39_449, job="3f")
    assert said == ["search   36 segment(s): 18 by ada, 18 by bell; 0.039449 credits"]
    assert "settled" in draw(picture)
    assert "36 of 36" in draw(picture)


def test_the_last_word_and_unknown_lines_are_not_shown(picture: Picture) -> None:
    assert tell(picture, "result", accuracy=0.9) == []
    assert tell(picture, "signed", job="3f") == []
    assert tell(picture, "transfer", done=5, total=6) == []
    assert picture.jobs["search"].job == "3f"
