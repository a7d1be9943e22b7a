"""Case files: what is written is read back, byte for byte; nothing else is a case file, whatever was done to it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from requester.purchase import caseframes
from requester.purchase.casefile import (
    BlobSource,
    Case,
    CaseContent,
    CaseReader,
    Manifest,
    are_blobs_named,
    is_manifest_true,
    list_missing,
    list_named,
    write_case,
)
from requester.purchase.caseframes import MAGIC, RULES, BadCase, FrameReader, FrameWriter, PartName
from requester.purchase.documents import MAX_CHUNK
from tests.attacks.case_chain import change
from tests.attacks.case_frames import HEAD
from tests.attacks.case_frames import join_frames as join
from tests.attacks.case_frames import split_frames as split
from tests.attacks.case_world import Play, find_in, play_failure, play_map, play_run, play_train

PLAYS: dict[str, Callable[[], Play]] = {
    "run": cache(play_run),
    "map": cache(play_map),
    "train": cache(play_train),
    "failure": cache(play_failure),
}


def read(data: bytes, step: int = 1 << 20) -> Case:
    reader = CaseReader()
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
    return reader.close()


def refuse(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        read(data)
    return caught.value.rule


def write(content: CaseContent) -> bytes:
    return b"".join(write_case(content))


@cache
def make(name: str, *, outputs: bool = True, inputs: bool = True) -> bytes:
    return write(PLAYS[name]().content(outputs=outputs, inputs=inputs))


# ---- what is written is read ----


@pytest.mark.parametrize("name", PLAYS)
@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_case_is_read_back_as_it_was(name: str, outputs: bool, inputs: bool) -> None:
    play = PLAYS[name]()
    data = make(name, outputs=outputs, inputs=inputs)
    case = read(data)
    assert case.documents == play.documents
    assert case.records == play.records
    named = list_named(play.documents, play.records)
    kinds = set(named.values()) - (set() if outputs else {PartName.OUTPUT})
    kinds -= set() if inputs else {PartName.CODE, PartName.INPUT}
    assert {place.name for place in case.blobs.values()} == kinds
    for digest, place in case.blobs.items():
        assert data[place.offset : place.offset + place.size] == play.blobs[digest]
        assert place.name is named[digest]
    receipts = [papers.receipt.body for papers in play.documents.leases if papers.receipt]
    assert case.provenance == {digest: play.blobs[digest] for digest in case.provenance}
    assert set(case.provenance) == {one.provenance for one in receipts} - {compute_digest(b"")}
    assert is_manifest_true(case)
    assert are_blobs_named(case)


@pytest.mark.parametrize("step", [1, 7, 24, 1_000])
def test_pieces_of_any_size_give_the_same_case(step: int) -> None:
    assert read(make("map"), step) == read(make("map"))


def test_the_same_case_has_one_form() -> None:
    case = read(make("map"))
    blobs = {digest: make("map")[one.offset : one.offset + one.size] for digest, one in case.blobs.items()}
    again = CaseContent(case.documents, case.records, find_in(blobs), outputs=True, inputs=True)
    assert write(again) == make("map")


def test_no_key_is_in_a_case() -> None:
    for name in PLAYS:
        for number in range(1, 7):
            assert bytes([number]) * 32 not in make(name)


def test_the_frames_are_those_of_the_page_for_outsiders() -> None:
    frames = split(make("map"))
    assert [name for name, _ in frames] == [
        "manifest",
        "head",
        "items",
        *["book"] * 2,
        *["lease"] * 3,
        *["records"] * 3,
        *["provenance"] * 2,
        *["log"] * 2,
        "code",
        "input",
        *["output"] * 6,
        "end",
    ]
    assert join(frames[:-1]) == make("map")


def test_records_lie_in_chunks() -> None:
    play = PLAYS["run"]()
    (lease,) = play.leases
    many = tuple(change(lease.records[0], index=index) for index in range(2 * MAX_CHUNK + 1))
    data = write(CaseContent(play.documents, {lease.id: many}, find_in({})))
    chunks = [body for name, body in split(data) if name == "records"]
    assert len(chunks) == 3
    assert read(data).records == {lease.id: many}


def test_an_output_that_is_also_the_input_counts_as_output_where_inputs_are_left_out() -> None:
    """A `train` whose step changes nothing: its output is its first state."""
    play = PLAYS["run"]()
    (lease,) = play.leases
    records = {lease.id: (change(lease.records[0], output=play.spec.inputs),)}
    data = write(CaseContent(play.documents, records, find_in(play.blobs), outputs=True))
    assert read(data).blobs[play.spec.inputs].name is PartName.OUTPUT


def test_what_is_missing_is_told_and_left_out() -> None:
    play = PLAYS["failure"]()
    content = CaseContent(play.documents, play.records, find_in({}), outputs=True, inputs=True)
    kinds = {PartName.PROVENANCE, PartName.ERROR, PartName.LOG, PartName.CODE, PartName.INPUT}
    assert {name for _, name in list_missing(content)} == kinds, "the segment failed, so there is no output"
    assert list_missing(play.content(outputs=True, inputs=True)) == []
    case = read(write(content))
    assert case.blobs == {}
    assert is_manifest_true(case)


# ---- blobs are streamed ----


class Spring:
    """A large blob that is made as it is read; it notes how many pieces are held at a time."""

    def __init__(self, pieces: int, size: int) -> None:
        self.pieces, self.size = pieces, size
        self.digest = hashlib.sha256(b"".join(self.read())).digest()

    def read(self) -> Iterable[bytes]:
        for number in range(self.pieces):
            yield bytes([number]) * self.size


def test_outputs_pass_through_piece_by_piece() -> None:
    play = PLAYS["run"]()
    (lease,) = play.leases
    spring = Spring(64, 4_096)
    records = {lease.id: (change(lease.records[0], output=spring.digest),)}

    def find(digest: bytes) -> BlobSource | None:
        return BlobSource(64 * 4_096, spring.read) if digest == spring.digest else None

    reader, largest = CaseReader(), 0
    for piece in write_case(CaseContent(play.documents, records, find, outputs=True)):
        reader.feed(piece)
        largest = max(largest, len(reader._frames._buffer))
    case = reader.close()
    assert case.blobs[spring.digest].size == 64 * 4_096
    assert largest < 4_096, "a blob was held in memory"


@pytest.mark.parametrize(
    ("pieces", "size", "rule"),
    [((b"output 0",), 9, "case.size"), ((b"output 0", b"!"), 8, "case.size"), ((b"output 1",), 8, "case.blob")],
)
def test_a_blob_that_is_not_what_it_was_is_not_written(pieces: tuple[bytes, ...], size: int, rule: str) -> None:
    play = PLAYS["run"]()
    find = find_in(play.blobs)
    wanted = compute_digest(b"output 0")
    content = CaseContent(
        play.documents,
        play.records,
        lambda digest: BlobSource(size, lambda: pieces) if digest == wanted else find(digest),
        outputs=True,
    )
    with pytest.raises(BadCase) as caught:
        write(content)
    assert caught.value.rule == rule


# ---- any one byte ----


def flip(data: bytes, position: int, mask: int) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


@pytest.mark.parametrize("name", PLAYS)
def test_any_one_byte_changed_is_refused(name: str, seed: int) -> None:
    """Every byte of the small files, bytes drawn from the seed of the others; each by a change drawn from the seed."""
    drawn, data = random.Random(seed), make(name)
    positions = range(len(data)) if name in ("run", "failure") else drawn.sample(range(len(data)), 1_000)
    for position in positions:
        mask = drawn.randrange(1, 256)
        rule = refuse(flip(data, position, mask))
        assert rule.startswith("case."), (position, mask)


@pytest.mark.check
@pytest.mark.parametrize("name", PLAYS)
def test_any_one_bit_of_any_file_is_refused(name: str) -> None:
    data = make(name)
    for position in range(len(data)):
        for bit in range(8):
            assert refuse(flip(data, position, 1 << bit)).startswith("case.")


def test_every_truncation_is_refused() -> None:
    data = make("run")
    for end in range(len(data)):
        assert refuse(data[:end]) == "case.short"


@given(more=st.binary(min_size=1, max_size=50))
def test_every_extension_is_refused(more: bytes) -> None:
    assert refuse(make("run") + more) == "case.trailing"
    assert refuse(more + make("run")).startswith("case.")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    assert refuse(data) in ("case.magic", "case.short")
    assert refuse(MAGIC + data).startswith("case.")


@given(data=st.data())
def test_any_frames_under_a_right_digest_are_refused_by_name(data: st.DataObject) -> None:
    """Whoever makes a file can close it properly: no exception but a refusal, whatever is in it."""
    names = st.sampled_from([name.value for name in PartName if name is not PartName.END])
    frames = data.draw(st.lists(st.tuples(names, st.binary(max_size=60)), max_size=6))
    assert refuse(join(frames)).partition(".")[0] in ("case", "codec", "documents")


# ---- frames moved about, closed again properly ----

RUN = split(make("run"))[:-1]
MAP = split(make("map"))[:-1]


def place(frames: list[tuple[str, bytes]], name: str, nth: int = 0) -> int:
    return [at for at, frame in enumerate(frames) if frame[0] == name][nth]


def swapped(frames: list[tuple[str, bytes]], one: int, two: int) -> bytes:
    moved = list(frames)
    moved[one], moved[two] = moved[two], moved[one]
    return join(moved)


def without(frames: list[tuple[str, bytes]], at: int) -> bytes:
    return join([*frames[:at], *frames[at + 1 :]])


def twice(frames: list[tuple[str, bytes]], at: int) -> bytes:
    return join([*frames[: at + 1], *frames[at:]])


def put(frames: list[tuple[str, bytes]], at: int, *new: tuple[str, bytes]) -> bytes:
    return join([*frames[:at], *new, *frames[at:]])


def head_of(name: bytes, size: int) -> bytes:
    return MAGIC + HEAD.pack(b"manifest", 0) + HEAD.pack(name, size)


MOVED: list[tuple[str, str, Callable[[], bytes]]] = [
    ("another magic", "case.magic", lambda: b"tally-case/2\n" + make("run")[len(MAGIC) :]),
    ("no frames", "case.short", lambda: MAGIC),
    ("an end and nothing else", "case.order", lambda: join([])),
    ("no end", "case.short", lambda: join(RUN, end=False)),
    ("an end of another length", "case.size", lambda: join(RUN, end=False) + HEAD.pack(b"end", 31) + bytes(31)),
    ("an end of zeros", "case.digest", lambda: join(RUN, end=False) + HEAD.pack(b"end", 32) + bytes(32)),
    ("an unknown part", "case.name", lambda: put(RUN, 2, ("extra", b""))),
    ("a path", "case.name", lambda: put(RUN, 2, ("../../etc/passwd", b""))),
    ("a name with a tail", "case.name", lambda: put(RUN, 2, ("head\0x", b""))),
    ("a name in capitals", "case.name", lambda: put(RUN, 2, ("HEAD", b""))),
    ("no manifest", "case.order", lambda: without(RUN, 0)),
    ("no head", "case.order", lambda: without(RUN, 1)),
    ("manifest and head swapped", "case.order", lambda: swapped(RUN, 0, 1)),
    ("two manifests", "case.order", lambda: twice(RUN, 0)),
    ("two heads", "case.order", lambda: twice(RUN, 1)),
    ("a book behind a lease", "case.order", lambda: swapped(RUN, place(RUN, "book"), place(RUN, "lease"))),
    ("records behind the log", "case.order", lambda: swapped(RUN, place(RUN, "records"), place(RUN, "log"))),
    ("a lease twice", "case.parts", lambda: twice(RUN, place(RUN, "lease"))),
    ("records twice", "documents.records", lambda: twice(RUN, place(RUN, "records"))),
    ("records in another order", "case.parts", lambda: swapped(MAP, place(MAP, "records"), place(MAP, "records", 1))),
    ("records without a lease", "case.parts", lambda: put(RUN, place(RUN, "records"), MAP[place(MAP, "records")])),
    ("an output twice", "case.blob", lambda: twice(RUN, place(RUN, "output"))),
    ("a log twice", "case.blob", lambda: twice(MAP, place(MAP, "log"))),
    ("a huge manifest", "case.size", lambda: MAGIC + HEAD.pack(b"manifest", 4_097)),
    ("a head of 2^64 - 1 bytes", "case.size", lambda: head_of(b"head", 2**64 - 1)),
    ("a manifest of noise", "codec.form", lambda: join([("manifest", b"\xff"), *RUN[1:]])),
    ("a head of noise", "codec.form", lambda: join([RUN[0], ("head", b"\xff"), *RUN[2:]])),
    ("a later version", "case.version", lambda: join([("manifest", remake(version=2)), *RUN[1:]])),
]  # fmt: skip


def remake(**fields: object) -> bytes:
    return encode(change(decode(RUN[0][1], Manifest), **fields))


@pytest.mark.parametrize(("name", "rule", "forge"), MOVED, ids=[row[0] for row in MOVED])
def test_a_file_of_another_form_is_refused_by_name(name: str, rule: str, forge: Callable[[], bytes]) -> None:
    assert refuse(forge()) == rule, name


@pytest.mark.parametrize("name", [name for name in PartName if name is not PartName.END])
def test_each_part_has_a_bound_before_a_byte_of_it_is_taken(name: PartName) -> None:
    reader = FrameReader()
    for before in (PartName.MANIFEST, PartName.HEAD):
        if before is name:
            break
        reader.feed((MAGIC if before is PartName.MANIFEST else b"") + HEAD.pack(before.value.encode(), 0))
    magic = MAGIC if name is PartName.MANIFEST else b""
    with pytest.raises(BadCase) as caught:
        reader.feed(magic + HEAD.pack(name.value.encode(), RULES[name].max_bytes + 1))
    assert caught.value.rule == "case.size"


def test_papers_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caseframes, "MAX_KEPT_BYTES", len(make("map")) // 4)
    assert refuse(make("map")) == "case.size"


@pytest.mark.parametrize("bound", ["MAX_PARTS", "MAX_BLOBS"])
def test_parts_and_blobs_are_counted(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caseframes, bound, 5)
    assert refuse(make("map")) == "case.count"


def test_what_readers_would_not_take_is_not_written() -> None:
    with pytest.raises(BadCase) as caught:
        list(FrameWriter().write(PartName.MANIFEST, 4_097, (bytes(4_097),)))
    assert caught.value.rule == "case.size"


# ---- what the form does not tell: the manifest, and blobs that nobody names ----

LIES = [
    ("leases", 2), ("records", 2), ("blobs", 1), ("outputs", False), ("inputs", False),
    ("chain", bytes(32)), ("order", bytes(32)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), LIES, ids=[row[0] for row in LIES])
def test_a_manifest_that_lies_is_told(field: str, value: object) -> None:
    case = read(join([("manifest", remake(**{field: value})), *RUN[1:]]))
    assert not (is_manifest_true(case) and are_blobs_named(case))


def test_a_blob_that_no_paper_names_is_told() -> None:
    for name in ("provenance", "error", "log", "code", "input", "output"):
        order = list(PartName)
        at = next(
            (n for n, one in enumerate(RUN) if order.index(PartName(one[0])) > order.index(PartName(name))), len(RUN)
        )
        count = decode(RUN[0][1], Manifest).blobs + 1
        case = read(put([("manifest", remake(blobs=count)), *RUN[1:]], at, (name, b"smuggled")))
        assert is_manifest_true(case)
        assert not are_blobs_named(case), name


def test_a_blob_that_stands_for_something_else_is_told() -> None:
    """The log's bytes as an error text: the papers name them, but not as that."""
    log = RUN[place(RUN, "log")]
    frames = [("error", body) if (name, body) == log else (name, body) for name, body in RUN]
    assert not are_blobs_named(read(join(frames)))


def test_outputs_in_another_order_are_told() -> None:
    one, two = place(MAP, "output"), place(MAP, "output", 1)
    assert not are_blobs_named(read(swapped(MAP, one, two)))
    assert are_blobs_named(read(join(MAP)))
