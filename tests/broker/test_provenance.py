"""Provenance: what the provider signs is what records and receipt say, in a form that outside verifiers accept."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key as OutsideKey

from broker.protocol.jobs import Entry, JobSpec, Level, Resources, Runtime
from broker.protocol.provenance import (
    BUILD_TYPE,
    WorkFacts,
    check_provenance,
    compute_provenance_limit,
    make_provenance,
    make_statement,
)
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.base.keys import Signer, show_key
from chain.ledger.terms.agreement import AwardRule, Kind, Order, Windows, compute_order_id
from chain.ledger.terms.outcome import Cause, Usage
from chain.ledger.terms.work import Environment, SegmentRecord

CHAIN = compute_digest(b"a chain")
PROVIDER, REQUESTER, STRANGER = (Signer(bytes([number]) * 32) for number in (1, 2, 3))
NOW = 1_800_000_000_000
EMPTY = compute_digest(b"")
LEASE = compute_digest(b"a lease")
RESOURCES = Resources(1 << 30, 60_000, 1000, 32, 256, 1 << 24, 16, 1 << 20, 1 << 26, 1 << 26)
RUNTIME = Runtime("3.11", ("numpy", "scikit-learn"))


def change(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def make_order(kind: Kind, segments: int) -> Order:
    return Order(
        requester=REQUESTER.key,
        auctioneer=STRANGER.key,
        watcher=None,
        holders=(),
        job=compute_digest(b"spec"),
        runtime=compute_digest(b"runtime"),
        kind=kind,
        start=compute_digest(b"inputs"),
        segments=segments,
        weights=(),
        segment_wall=60_000,
        replicas=1,
        cap=1_000_000,
        limit=1_000,
        commission=200,
        rule=AwardRule.LOWEST,
        comparator="exact",
        panel=0,
        deposit=0,
        damages=1_000,
        windows=Windows(30_000, 10_000, 600_000, 10_000, 60_000, 60_000, 60_000),
        closes=NOW,
        deadline=NOW + 60_000,
        expiry=NOW + 120_000,
        salt=bytes(16),
    )


def make_record(index: int, cause: Cause = Cause.OK) -> SegmentRecord:
    return SegmentRecord(
        lease=LEASE,
        index=index,
        provider=PROVIDER.key,
        input=compute_digest(b"input %d" % index),
        output=compute_digest(b"output %d" % index) if cause is Cause.OK else EMPTY,
        error=EMPTY if cause is Cause.OK else compute_digest(b"trace"),
        cause=cause,
        usage=Usage(),
        started=NOW + index,
        dispatch="x86-64",
    )


def make_facts(kind: Kind = Kind.MAP, causes: tuple[Cause, ...] = (Cause.OK, Cause.OK, Cause.OOM)) -> WorkFacts:
    order = make_order(kind, 9)
    spec = JobSpec(
        title="a job",
        kind=kind,
        entry=Entry.SCRIPT,
        function="step",
        code=compute_digest(b"code"),
        code_bytes=4,
        inputs=compute_digest(b"inputs"),
        input_bytes=6,
        runtime=RUNTIME,
        resources=RESOURCES,
        level=Level.NS,
        seed=2**63 - 1,
        parallelism=2,
        tolerance=0,
    )
    records = tuple(make_record(3 + place, cause) for place, cause in enumerate(causes))
    environment = Environment("ns+cgroup", order.runtime, 1, "openblas")
    return WorkFacts(CHAIN, order, compute_order_id(CHAIN, order), spec, LEASE, records, environment, NOW + 9_001)


FACTS = make_facts()
GOOD = make_provenance(PROVIDER, FACTS)


def refuse(data: bytes, facts: WorkFacts = FACTS, key: bytes = PROVIDER.key) -> str:
    with pytest.raises(Refused) as caught:
        check_provenance(data, key, facts)
    return caught.value.rule


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Envelope and statement as plain JSON."""
    envelope = json.loads(data)
    return envelope, json.loads(b64decode(envelope["payload"]))


def write(envelope: dict[str, Any]) -> bytes:
    return json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()


def sign_again(statement: Any, signer: Signer = PROVIDER) -> bytes:
    """An envelope over any statement, signed properly: what a dishonest provider can make."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    return write(
        {
            "payload": b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": show_key(signer.key), "sig": b64encode(signer.sign_bytes(pae)).decode()}],
        }
    )


# ---- outsiders accept it ----


def make_outside_key(key: bytes) -> OutsideKey:
    members = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": key.hex()}}
    return OutsideKey.from_dict(show_key(key), members)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_outside_dsse_verifier_accepts_it(kind: Kind) -> None:
    data = make_provenance(PROVIDER, make_facts(kind))
    envelope = Envelope.from_dict(json.loads(data))
    accepted = envelope.verify([make_outside_key(PROVIDER.key)], threshold=1)
    assert list(accepted) == [show_key(PROVIDER.key)]
    assert envelope.payload == make_statement(make_facts(kind))


def test_an_outside_dsse_verifier_refuses_what_was_changed() -> None:
    envelope = Envelope.from_dict(json.loads(GOOD))
    with pytest.raises(VerificationError):
        envelope.verify([make_outside_key(STRANGER.key)], threshold=1)
    envelope.payload = envelope.payload.replace(b"segment/3", b"segment/4")
    with pytest.raises(VerificationError):
        envelope.verify([make_outside_key(PROVIDER.key)], threshold=1)


@pytest.mark.parametrize("kind", list(Kind))
def test_in_toto_s_own_model_takes_the_statement(kind: Kind) -> None:
    payload = make_statement(make_facts(kind))
    parsed = json_format.Parse(payload, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
    predicate = json_format.ParseDict(json_format.MessageToDict(parsed.predicate), provenance_pb2.Provenance())
    assert predicate.build_definition.build_type == BUILD_TYPE
    assert predicate.run_details.builder.id == show_key(PROVIDER.key)
    assert predicate.run_details.metadata.started_on.ToMilliseconds() == NOW + 3
    assert predicate.run_details.metadata.finished_on.ToMilliseconds() == NOW + 9_001


def test_in_toto_s_own_model_would_refuse_another_statement() -> None:
    """The model looks at what it is given: a subject without a digest does not pass."""
    _, statement = read(GOOD)
    statement["subject"][0]["digest"] = {}
    with pytest.raises(ValueError, match="digest"):
        Statement.copy_from_pb(json_format.ParseDict(statement, statement_pb2.Statement())).validate()


# ---- what it says ----


def test_it_says_what_was_done() -> None:
    _, statement = read(GOOD)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [
        {"name": f"segment/{record.index}", "digest": {"sha256": record.output.hex()}} for record in FACTS.records
    ]
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert definition["externalParameters"] == {
        "chain": CHAIN.hex(),
        "order": FACTS.order_id.hex(),
        "job": FACTS.order.job.hex(),
        "kind": "map",
        "entry": "script",
        "function": "step",
        "range": {"first": 3, "count": 3, "of": 9},
        "seed": "9223372036854775807",
    }
    assert definition["internalParameters"] == {
        "level": "ns+cgroup",
        "threads": 1,
        "blas": "openblas",
        "failures": [{"segment": 5, "cause": "oom", "error": {"sha256": compute_digest(b"trace").hex()}}],
    }
    assert definition["resolvedDependencies"] == [
        {"name": "code", "digest": {"sha256": FACTS.spec.code.hex()}},
        {"name": "inputs", "digest": {"sha256": FACTS.spec.inputs.hex()}},
        {
            "name": "runtime",
            "digest": {"tallyRuntime1": FACTS.environment.runtime.hex()},
            "annotations": {"python": "3.11", "packages": ["numpy", "scikit-learn"]},
        },
    ]
    assert details == {
        "builder": {"id": show_key(PROVIDER.key)},
        "metadata": {
            "invocationId": LEASE.hex(),
            "startedOn": "2027-01-15T08:00:00.003Z",
            "finishedOn": "2027-01-15T08:00:09.001Z",
        },
    }


def test_a_train_names_the_state_it_went_on_from() -> None:
    facts = make_facts(Kind.TRAIN)
    _, statement = read(make_provenance(PROVIDER, facts))
    last = statement["predicate"]["buildDefinition"]["resolvedDependencies"][-1]
    assert last == {"name": "state", "digest": {"sha256": facts.records[0].input.hex()}}


def test_there_is_one_form() -> None:
    """ASCII, sorted names, no spaces, no floats: the same facts give the same bytes."""
    assert make_provenance(PROVIDER, make_facts()) == GOOD
    environment = Environment("é\u202e", FACTS.order.runtime, 1, '"')
    payload = make_statement(replace_facts(environment=environment))
    assert payload.isascii()
    assert payload == json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":")).encode()
    json.loads(payload, parse_float=pytest.fail, parse_constant=pytest.fail)


def replace_facts(**fields: Any) -> WorkFacts:
    values = {name: getattr(FACTS, name) for name in WorkFacts.__dataclass_fields__}
    return WorkFacts(**{**values, **fields})


# ---- the check ----


def test_the_check_takes_what_was_made() -> None:
    check_provenance(GOOD, PROVIDER.key, FACTS)


OTHER = compute_digest(b"other")
RECORDS = FACTS.records
OTHER_FACTS: list[tuple[str, dict[str, Any]]] = [
    ("another chain", {"chain": OTHER}),
    ("another order", {"order_id": OTHER}),
    ("another job", {"order": change(FACTS.order, job=OTHER)}),
    ("another kind", {"order": change(FACTS.order, kind=Kind.TRAIN)}),
    ("more segments in the order", {"order": change(FACTS.order, segments=10)}),
    ("another entry", {"spec": change(FACTS.spec, entry=Entry.FOLDER)}),
    ("another function", {"spec": change(FACTS.spec, function="other")}),
    ("another seed", {"spec": change(FACTS.spec, seed=1)}),
    ("other code", {"spec": change(FACTS.spec, code=OTHER)}),
    ("other inputs", {"spec": change(FACTS.spec, inputs=OTHER)}),
    ("another Python", {"spec": change(FACTS.spec, runtime=Runtime("3.12", RUNTIME.packages))}),
    ("another lease", {"lease": OTHER}),
    ("a record less", {"records": RECORDS[:-1]}),
    ("a record twice", {"records": (*RECORDS, RECORDS[-1])}),
    ("records in another order", {"records": RECORDS[::-1]}),
    ("another output", {"records": (change(RECORDS[0], output=OTHER), *RECORDS[1:])}),
    ("another cause", {"records": (*RECORDS[:-1], change(RECORDS[-1], cause=Cause.CPU))}),
    ("another error", {"records": (*RECORDS[:-1], change(RECORDS[-1], error=OTHER))}),
    ("another provider in the records", {"records": (change(RECORDS[0], provider=STRANGER.key), *RECORDS[1:])}),
    ("another start", {"records": (change(RECORDS[0], started=1), *RECORDS[1:])}),
    ("another runtime", {"environment": change(FACTS.environment, runtime=OTHER)}),
    ("another level", {"environment": change(FACTS.environment, level="ns")}),
    ("other threads", {"environment": change(FACTS.environment, threads=2)}),
    ("another blas", {"environment": change(FACTS.environment, blas="mkl")}),
    ("another end", {"finished": NOW}),
    ("an end beyond all dates", {"finished": 2**63 - 1}),
    ("no records", {"records": ()}),
]


@pytest.mark.parametrize(("name", "fields"), OTHER_FACTS, ids=[row[0] for row in OTHER_FACTS])
def test_each_fact_is_looked_at(name: str, fields: dict[str, Any]) -> None:
    assert refuse(GOOD, replace_facts(**fields)) == "provenance.statement", name


def bend(**members: Any) -> bytes:
    envelope, _ = read(GOOD)
    return write({**envelope, **members})


def sign_as(keyid: str, signer: Signer) -> dict[str, str]:
    payload = make_statement(FACTS)
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    return {"keyid": keyid, "sig": b64encode(signer.sign_bytes(pae)).decode()}


MINE = sign_as(show_key(PROVIDER.key), PROVIDER)
FORMS: list[tuple[str, str, Callable[[], bytes]]] = [
    ("no JSON", "form", lambda: b"no"),
    ("nothing", "form", lambda: b""),
    ("a list", "form", lambda: b"[]"),
    ("deeply nested", "form", lambda: b'{"payload":' + b"[" * 20_000),
    ("a byte behind", "form", lambda: GOOD + b" "),
    ("spaces within", "form", lambda: json.dumps(json.loads(GOOD)).encode()),
    ("members in another order", "form", lambda: json.dumps(dict(reversed(json.loads(GOOD).items()))).encode()),
    ("an unknown member", "form", lambda: bend(more=1)),
    ("another payload type", "form", lambda: bend(payloadType="application/json")),
    ("base64 with a stranger in it", "form", lambda: bend(payload="!" + json.loads(GOOD)["payload"])),
    ("base64 cut off", "form", lambda: bend(payload=json.loads(GOOD)["payload"][:-1])),
    ("text beyond ASCII", "form", lambda: bend(payload="é")),
    ("no signature", "signature", lambda: bend(signatures=[])),
    ("two signatures", "signature", lambda: bend(signatures=[MINE, MINE])),
    ("a stranger's signature", "signature", lambda: bend(signatures=[sign_as(show_key(STRANGER.key), STRANGER)])),
    ("a stranger's under our name", "signature", lambda: bend(signatures=[sign_as(show_key(PROVIDER.key), STRANGER)])),
    ("ours under a stranger's name", "signature", lambda: bend(signatures=[sign_as(show_key(STRANGER.key), PROVIDER)])),
    ("a short signature", "signature", lambda: bend(signatures=[{**MINE, "sig": "AAAA"}])),
    ("another payload under the signature", "signature", lambda: bend(payload=b64encode(b"{}").decode())),
    ("a statement of nothing", "statement", lambda: sign_again({})),
    ("a member more", "statement", lambda: sign_again({**read(GOOD)[1], "more": 1})),
    ("too long", "size", lambda: b" " * (compute_provenance_limit(len(RECORDS)) + 1)),
]


@pytest.mark.parametrize(("name", "rule", "make"), FORMS, ids=[row[0] for row in FORMS])
def test_another_form_is_refused_by_name(name: str, rule: str, make: Callable[[], bytes]) -> None:
    assert refuse(make()) == f"provenance.{rule}", name


def test_the_helper_that_signs_again_makes_the_one_form() -> None:
    assert sign_again(read(GOOD)[1]) == GOOD


@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused(position: int, bit: int) -> None:
    spoiled = bytearray(GOOD)
    spoiled[position] ^= 1 << bit
    assert refuse(bytes(spoiled)).startswith("provenance.")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    assert refuse(data).startswith("provenance.")


def test_the_largest_statement_fits_its_limit() -> None:
    """64 packages of 100 characters, labels of 200 that JSON writes as pairs of escapes, each record failed."""
    wide = "\U0001f600" * 200
    facts = replace_facts(
        spec=change(FACTS.spec, function="f" * 100, runtime=Runtime("3" * 100, ("p" * 100,) * 64)),
        environment=Environment(wide, FACTS.order.runtime, 2**32 - 1, wide),
        records=tuple(change(make_record(2**32 - 1, Cause.PROGRAM)) for _ in range(1_000)),
        finished=253_402_300_799_999,
    )
    data = make_provenance(PROVIDER, facts)
    assert len(data) < compute_provenance_limit(1_000)
    check_provenance(data, PROVIDER.key, facts)
