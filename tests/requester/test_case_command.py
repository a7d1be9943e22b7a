"""`tally case` and `tally verify`: from the store to a file and back, offline, with an empty home and no settings."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from chain.base.errors import Refused, Unavailable
from chain.base.keys import show_key
from chain.ledger.genesis import write_genesis
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.work import Span
from requester.cli import cases
from requester.cli.app import run
from requester.purchase.casefile import CaseContent, write_case
from requester.purchase.documents import make_chunks
from requester.store import cases as disk
from requester.store.cases import gather_case, read_case_file, write_case_file
from requester.store.jobs import JobStore
from tests.attacks.case_chain import ALICE, BOB, REQUESTER, Chain
from tests.attacks.case_forged_ends import without_lease
from tests.attacks.case_hand import Hand
from tests.attacks.case_world import Play, find_in, play_failure, play_map, play_run, play_train, play_watched

PLAYS: dict[str, Callable[[], Play]] = {
    "run": cache(play_run),
    "map": cache(play_map),
    "train": cache(play_train),
    "failure": cache(play_failure),
}


class Said:
    """What one command said, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        capsys.readouterr()
        self.code = run([str(one) for one in arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        found = json.loads(self.out)
        assert found["version"] == 1
        return found


def keep(store: JobStore, play: Play, phase: str = "settled", lost: bytes = b"") -> str:
    """A job as its owner's store has it, without a blob that was `lost`; returns its id."""
    documents = play.documents
    job = store.add(documents.chain, documents.order, documents.spec, 1, ("", ""), documents.items)
    store.update(job, phase, ("", ""), documents)
    for papers in documents.leases:
        for chunk in make_chunks(papers.lease, play.records[papers.lease]):
            store.keep_records(job, chunk)
        store.keep_proof(job, papers.lease, papers.proof, papers.state)
    for digest, data in play.blobs.items():
        if digest != lost:
            store.blobs.put(data)
    return job.hex()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that is not there yet, nothing named by the environment, and no network."""
    for name in ("TALLY_BROKER", "TALLY_CHAIN", "TALLY_KEY", "TALLY_GENESIS", "TALLY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TALLY_HOME", str(tmp_path / "home"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("somebody asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


@pytest.fixture
def store(home: Path) -> Any:
    opened = JobStore(home / "home" / "requester")
    yield opened
    opened.close()


def put(folder: Path, name: str, play: Play, **flags: bool) -> tuple[Path, Path]:
    """A case and its genesis as files."""
    genesis, path = folder / f"{name}.json", folder / f"{name}.case"
    genesis.write_text(write_genesis(play.chain.genesis))
    path.write_bytes(b"".join(write_case(play.content(**flags))))
    return path, genesis


# ---- tally case ----


@pytest.mark.parametrize("name", PLAYS)
def test_a_case_goes_from_the_store_to_a_file_that_verifies(
    name: str, store: JobStore, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play = PLAYS[name]()
    job = keep(store, play)
    path, genesis = home / "job.case", home / "genesis.json"
    genesis.write_text(write_genesis(play.chain.genesis))
    for flags in ([], ["--outputs"], ["--inputs"], ["--outputs", "--inputs"]):
        said = Said(capsys, "case", job[:16], "-o", path, *flags)
        assert (said.code, said.err) == (0, "")
        assert str(path) in said.out
        checked = Said(capsys, "verify", path, "--genesis", genesis)
        assert checked.code == 0, checked.out
        assert ("digests only" in checked.out) == ("--outputs" not in flags)
    content = play.content(outputs=True, inputs=True)
    assert path.read_bytes() == b"".join(write_case(content))


def test_what_was_written_is_said_as_json(store: JobStore, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = keep(store, PLAYS["run"]())
    found = Said(capsys, "case", job, "-o", home / "a.case", "--outputs", "--json").json
    size = (home / "a.case").stat().st_size
    assert (found["job"], found["size"], found["outputs"], found["inputs"]) == (job, size, True, False)
    assert (found["over"], found["missing"]) == (True, [])


def test_blobs_that_are_gone_are_named_and_the_rest_is_written(
    store: JobStore, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play = PLAYS["run"]()
    output = play.leases[0].records[0].output
    job = keep(store, play, lost=output)
    said = Said(capsys, "case", job, "-o", home / "a.case", "--outputs")
    assert said.code == 0
    assert "1 blobs (output) are not here any more" in said.err
    missing = Said(capsys, "case", job, "-o", home / "a.case", "--outputs", "--json").json["missing"]
    assert missing == [{"digest": output.hex(), "part": "output"}]
    genesis = home / "genesis.json"
    genesis.write_text(write_genesis(play.chain.genesis))
    checked = Said(capsys, "verify", home / "a.case", "--genesis", genesis)
    assert checked.code == 1
    assert " 35 FAILED  outputs" in checked.out


def test_a_job_that_goes_on_is_written_with_a_warning(
    store: JobStore, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = keep(store, PLAYS["run"](), phase="running")
    said = Said(capsys, "case", job, "-o", home / "a.case")
    assert said.code == 0
    assert "not over yet (running)" in said.err


def test_where_a_case_cannot_go_is_said(store: JobStore, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = keep(store, PLAYS["run"]())
    assert Said(capsys, "case", job, "-o", home).code == 1
    assert Said(capsys, "case", job, "-o", home / "none" / "a.case").code == 1
    assert Said(capsys, "case", job).code == 2
    assert Said(capsys, "case", "ffff", "-o", home / "a.case").code == 1
    assert not (home / "a.case").exists()


# ---- tally verify ----


def test_it_works_with_an_empty_home_and_leaves_it_empty(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "map", PLAYS["map"]())
    assert Said(capsys, "verify", path, "--genesis", genesis).code == 0
    assert not (home / "home").exists()
    assert sorted(one.name for one in home.iterdir()) == ["map.case", "map.json"]


def test_it_says_who_did_what_for_how_much_and_who_accepted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "map", PLAYS["map"]())
    lines = Said(capsys, "verify", path, "--genesis", genesis).out.splitlines()
    alice, bob = show_key(ALICE.key), show_key(BOB.key)
    assert lines[0].endswith(": a job \\x1b[31m"), "a title of others never reaches the terminal as it came"
    assert lines[1].endswith(show_key(REQUESTER.key))
    assert lines[-5:] == [
        f"{alice}: segments 0 to 2: 3 of 3 paid for; 3 credits, commission 0.06; accepted by the requester",
        f"{bob}: segments 3 to 5: 1 of 3 paid for; 1.1 credits, commission 0.022; damages 0.22; accepted by silence",
        f"{alice}: segments 4 to 5: 2 of 2 paid for; 2.1 credits, commission 0.042; accepted by the requester",
        "outputs are not in the file: digests only",
        "verified: 166 checks passed; by the leases in this file 6.324 credits left the requester",
    ]
    assert [line for line in lines if line.startswith("lease ")] == [f"lease {n} of 3" for n in (1, 2, 3)]
    assert sum(" 35 skipped" in line for line in lines) == 3
    assert not any("FAILED" in line for line in lines)


def test_a_watcher_is_told_from_the_requester(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "watched", play_watched())
    assert "; accepted by the watcher\n" in Said(capsys, "verify", path, "--genesis", genesis).out


def test_a_failure_is_told_as_paid(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "failure", PLAYS["failure"]())
    assert "1 of 1 paid for; 1 failed; 1 credits" in Said(capsys, "verify", path, "--genesis", genesis).out


def test_the_same_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play = PLAYS["train"]()
    path, genesis = put(home, "train", play, outputs=True)
    found = Said(capsys, "verify", path, "--genesis", genesis, "--json").json
    assert found["verified"] is True
    assert (found["job"], found["chain"]) == (play.order_id.hex(), play.chain.id.hex())
    assert (found["outputs"], found["inputs"], found["unserved"]) == (True, False, [])
    assert {(one["passed"], one["skipped"]) for one in found["checks"]} == {(True, False)}
    assert {one["lease"] for one in found["checks"]} == {None, 0, 1}
    assert [(one["first"], one["served"], one["accepted"], one["spent"]) for one in found["leases"]] == [
        (0, 2, "silence", 2_040_000),
        (2, 2, "requester", 2_448_000),
    ]
    assert [one["lease"] for one in found["leases"]] == [lease.id.hex() for lease in play.leases]


def test_a_failed_check_is_named_and_nothing_is_claimed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = put(home, "run", PLAYS["run"]())
    foreign = home / "foreign.json"
    foreign.write_text(write_genesis(Chain("foreign").genesis))
    said = Said(capsys, "verify", path, "--genesis", foreign)
    assert said.code == 1
    assert " 40 FAILED  genesis" in said.out
    assert "credits" not in said.out
    assert said.out.splitlines()[-1].startswith("NOT verified")
    found = Said(capsys, "verify", path, "--genesis", foreign, "--json").json
    assert (found["verified"], found["leases"]) == (False, [])


def test_what_was_left_out_is_not_claimed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That the last round of a job was left out can't be proved, so the file must not seem to say that all was done."""
    play = PLAYS["map"]()
    hand = Hand(play, play)
    without_lease(2)(hand)
    hand.set(books=hand.documents.books[:1])
    path, genesis = put(home, "map", play)
    path.write_bytes(hand.write())
    said = Said(capsys, "verify", path, "--genesis", genesis)
    assert said.code == 0
    assert "segments 4 to 5: no lease in this file was paid for them" in said.out.splitlines()
    hand = Hand(play, play)
    without_lease(1)(hand)
    hand.set(tried=(play.leases[1].award.body.bid,))
    path.write_bytes(hand.write())
    found = Said(capsys, "verify", path, "--genesis", genesis, "--json").json
    assert (found["verified"], found["unserved"]) == (True, [{"first": 3, "count": 1}])


def test_where_a_bid_is_said_to_have_opened_no_lease_the_sums_are_a_lower_bound(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody signs that: whoever has a genuine case could drop a lease that was paid for and name its bid."""
    play = PLAYS["map"]()
    path, genesis = put(home, "map", play)
    whole = Said(capsys, "verify", path, "--genesis", genesis, "--json")
    assert (whole.code, whole.json["tried"], whole.json["lower_bound"]) == (0, 0, False)
    hand = Hand(play, play)
    without_lease(2)(hand)
    hand.set(tried=(play.leases[2].award.body.bid,))
    path.write_bytes(hand.write())
    said = Said(capsys, "verify", path, "--genesis", genesis)
    assert said.code == 7
    assert " 95 skipped tried: bids that are said, by nobody's signature, not to have opened a lease: 1" in said.out
    assert said.out.splitlines()[-2:] == [
        "1 bid is said not to have opened a lease; nobody signed that, so more may have been paid",
        "verified: 121 checks passed; by the leases in this file at least 4.182 credits left the requester",
    ]
    found = Said(capsys, "verify", path, "--genesis", genesis, "--json")
    assert (found.code, found.json["verified"], found.json["tried"], found.json["lower_bound"]) == (7, True, 1, True)
    assert [one["number"] for one in found.json["checks"] if one["skipped"]] == [95]


def test_a_file_without_leases_does_not_prove_that_nothing_was_paid(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play = PLAYS["run"]()
    path, genesis = put(home, "run", play)
    hand = Hand(play, play)
    without_lease(0)(hand)
    hand.set(books=())
    path.write_bytes(hand.write())
    said = Said(capsys, "verify", path, "--genesis", genesis)
    assert said.code == 7
    assert "no lease is in this file: it does not prove that nothing was paid" in said.out
    assert "at least 0 credits" in said.out.splitlines()[-1]
    found = Said(capsys, "verify", path, "--genesis", genesis, "--json")
    assert (found.code, found.json["leases"], found.json["lower_bound"]) == (7, [], True)


def test_only_segments_that_were_paid_for_are_told_as_failed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The provider puts a receipt over more than it was paid for into the file, its last segment a failure."""
    play = Play(Kind.MAP, 3)
    (lease,) = play.hold_round((Span(0, 3),), [(ALICE, 1_000_000)])
    play.leave(lease, 1)
    play.work(lease, failing=1)
    play.write_receipt(lease, final=True)
    play.stay_silent(lease)
    path, genesis = put(home, "left", play)
    (found,) = Said(capsys, "verify", path, "--genesis", genesis, "--json").json["leases"]
    assert (found["served"], found["failed"]) == (1, 0)


def test_a_flipped_byte_is_refused_in_one_message(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "run", PLAYS["run"]())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = Said(capsys, "verify", path, "--genesis", genesis)
    assert (said.code, said.out) == (1, "")
    assert "a byte was changed" in said.err
    found = Said(capsys, "verify", path, "--genesis", genesis, "--json")
    assert json.loads(found.out)["error"]["rule"] == "case.digest"


def test_exit_codes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, genesis = put(home, "run", PLAYS["run"]())
    assert Said(capsys, "verify", path).code == 2, "no genesis is named anywhere"
    assert Said(capsys, "verify", "--genesis", genesis).code == 2
    assert Said(capsys, "verify", home / "none.case", "--genesis", genesis).code == 1
    assert Said(capsys, "verify", home, "--genesis", genesis).code == 1
    assert Said(capsys, "verify", path, "--genesis", home / "none.json").code == 1
    assert Said(capsys, "verify", genesis, "--genesis", genesis).code == 1
    (home / "home" / "requester").mkdir(parents=True)
    (home / "home" / "requester" / "genesis.json").write_text(genesis.read_text())
    assert Said(capsys, "verify", path).code == 0, "the genesis of the settings"


def test_a_large_file_shows_a_sign_of_life(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, genesis = put(home, "run", PLAYS["run"]())
    assert Said(capsys, "verify", path, "--genesis", genesis).err == ""
    monkeypatch.setattr(cases, "QUIET_SECONDS", 0.0)
    assert Said(capsys, "verify", path, "--genesis", genesis).err.startswith("reading: ")


# ---- files ----


def test_a_case_is_written_whole_or_not_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play, path = PLAYS["run"](), home / "a.case"
    path.write_bytes(b"what was there")
    output = play.leases[0].records[0].output
    bad = CaseContent(play.documents, play.records, find_in({**play.blobs, output: b"spoiled!"}), outputs=True)
    with pytest.raises(Refused) as refused:
        write_case_file(path, bad)
    assert refused.value.rule == "case.blob"

    def fill(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable) as unavailable:
        write_case_file(path, play.content(), fill)
    assert unavailable.value.rule == "file.write"
    assert path.read_bytes() == b"what was there"
    assert [one.name for one in home.iterdir()] == ["a.case"]


def test_large_blobs_are_read_and_written_in_pieces(
    store: JobStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = PLAYS["run"]()
    job = bytes.fromhex(keep(store, play))
    monkeypatch.setattr(disk, "PIECE_BYTES", 40_000)
    heard: list[int] = []
    content = gather_case(store, job, outputs=True, inputs=True)
    size = write_case_file(home / "a.case", content, heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == size
    source = content.find(store.blobs.put(bytes(100_000)))
    assert source is not None
    assert (source.size, [len(piece) for piece in source.read()]) == (100_000, [40_000, 40_000, 20_000])
    monkeypatch.setattr(disk, "PIECE_BYTES", 1_000)
    heard.clear()
    assert read_case_file(home / "a.case", heard.append).documents == play.documents
    assert heard[:2] == [1_000, 2_000]
