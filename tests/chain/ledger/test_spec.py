"""chain/SPEC.md says what the code does: every name of a refusal stands there, every named file exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from chain.ledger.rules.table import ROWS

ROOT = Path(__file__).resolve().parents[3]
LEDGER = ROOT / "chain" / "ledger"
SPEC = (ROOT / "chain" / "SPEC.md").read_text()
NAME = re.compile(r"(?:R\d+|lease|block|state|recent|results|store|genesis|mempool)\.[a-zA-Z.-]+")


def list_rules() -> set[str]:
    """Every text in the ledger's code that is the name of a rule."""
    found = set()
    for path in LEDGER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "rule" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
            elif isinstance(node, ast.Call):
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                found |= {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}
    return found


def test_every_refusal_of_the_ledger_is_named_in_the_specification() -> None:
    rules = list_rules()
    assert len(rules) > 80 and "R2.cap" in rules and "R3.a.auctioneer" in rules
    assert sorted(rule for rule in rules if f"`{rule}`" not in SPEC) == []


def test_every_name_in_the_specification_is_in_the_code() -> None:
    """A rule that was renamed or dropped must not live on in the page. Keys are refused by chain.base."""
    named = {name for name in re.findall(r"`([A-Za-z0-9.-]+)`", SPEC) if NAME.fullmatch(name)}
    base = {"R18.key", "R18.range"}
    by_state = {"lease.settled.cancel"}
    assert sorted(named - list_rules() - base - by_state) == []


def test_every_file_in_the_specification_exists() -> None:
    paths = set(re.findall(r"`(L/[a-z_/.]+|chain/[a-z_/.]+)`", SPEC))
    assert len(paths) > 15
    missing = [path for path in paths if not (ROOT / path.replace("L/", "chain/ledger/", 1)).exists()]
    assert missing == []


def test_every_rule_and_every_row_has_its_line() -> None:
    assert [int(number) for number in re.findall(r"^\| R(\d+) ", SPEC, re.M)] == list(range(1, 20))
    rows = {1, *(row for rows in ROWS.values() for row in rows)}
    assert rows == set(range(1, 18))
