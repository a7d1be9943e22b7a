"""docs/case-file.md says what holds: its tables are those of the code, and its example reads a real file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from chain.base.hashing import compute_digest
from requester.purchase import caseverify, checks, deliveries, endings, verify
from requester.purchase.casefile import write_case
from requester.purchase.caseframes import BLOBS, MAX_KEPT_BYTES, RULES, PartName
from requester.purchase.checking import Check
from requester.purchase.documents import MAX_CHUNK, MAX_ITEM_DIGESTS
from tests.attacks.case_world import play_map

PAGE = (Path(__file__).parents[2] / "docs" / "case-file.md").read_text(encoding="utf-8")

TABLES: tuple[tuple[Check[Any], ...], ...] = (
    verify.CHAIN_CHECKS,
    verify.ORDER_CHECKS,
    verify.JOB_CHECKS,
    checks.BOOK_CHECKS,
    checks.AWARD_CHECKS[1:],
    checks.SHARE_CHECKS,
    deliveries.DELIVERY_CHECKS,
    deliveries.BLOB_CHECKS,
    endings.END_CHECKS,
    endings.SETTLEMENT_CHECKS,
    verify.TOTAL_CHECKS,
    caseverify.COMPLETE_CHECKS,
    caseverify.TIME_CHECKS,
    caseverify.FILE_CHECKS,
    caseverify.DOUBT_CHECKS,
)


def test_the_checks_of_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert rows == [(str(one.number), one.name, one.text) for table in TABLES for one in table]


def test_each_check_has_a_number_of_its_own() -> None:
    numbers = [one.number for table in TABLES for one in table]
    assert len(set(numbers)) == len(numbers)


def test_the_checks_are_made_in_the_order_of_the_page() -> None:
    play = play_map()
    made = verify.verify_job(play.documents, play.records, play.blobs, play.chain.genesis)
    order = [one.number for table in TABLES for one in table]
    of_job = [one.number for one in made if one.lease is None]
    once = list(dict.fromkeys(of_job))
    assert once == [number for number in order if number in once]
    for lease in range(3):
        numbers = [one.number for one in made if one.lease == lease]
        assert numbers == [number for number in order if number in numbers]
    assert {one.number for one in made} | {90, 91, 92, 93, 94, 95} == set(order)


def test_the_parts_of_the_page_are_those_of_the_code() -> None:
    table = PAGE[PAGE.index("| part | how many") : PAGE.index("Parts stand in the order")]
    named = re.findall(r"^\| ((?:`[a-z]+`(?:, )?)+) \| (\S+)[^|]* \| ([^|]+) \|", table, re.MULTILINE)
    names = [name for cell, *_ in named for name in re.findall(r"`([a-z]+)`", cell)]
    assert names == [name.value for name in PartName if name is not PartName.END]
    sizes = {1 << 12: "4 KiB", 4 << 20: "4 MiB", 160 << 20: "160 MiB"}
    for cell, number, longest in named[:-1]:
        rule = RULES[PartName(cell.strip("`"))]
        assert longest == sizes[rule.max_bytes]
        assert (number == "1") == rule.once
    assert {RULES[name].max_bytes for name in BLOBS - {PartName.ERROR, PartName.PROVENANCE}} == {1 << 40}
    assert f"at most {MAX_KEPT_BYTES >> 20} MiB together" in PAGE
    assert f"{MAX_CHUNK:,} in each part" in PAGE
    assert f"{MAX_ITEM_DIGESTS:,} in each part" in PAGE


def test_the_example_of_the_page_reads_a_case(tmp_path: Path) -> None:
    play = play_map()
    path = tmp_path / "a.case"
    path.write_bytes(b"".join(write_case(play.content(outputs=True))))
    scope: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], scope)
    parts = list(scope["parts"](path))
    assert [name for name, _ in parts][:2] == ["manifest", "head"]
    outputs = {compute_digest(data) for name, data in parts if name == "output"}
    assert outputs == {record.output for record in play.get_records()}
