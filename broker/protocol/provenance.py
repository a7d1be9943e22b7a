"""Provenance of a lease's outputs in the forms that other tools read: an in-toto Statement v1 with an SLSA provenance
v1 predicate, in a DSSE v1 envelope signed with the provider's key. `docs/case-file.md` describes each member.

It says nothing that receipt and records do not say: whoever holds those makes the statement again and compares.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from broker.protocol.jobs import JobSpec
from chain.base.errors import Refused
from chain.base.keys import Signer, is_signature, show_key
from chain.ledger.terms.agreement import Kind, Order
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Environment, SegmentRecord

__all__ = [
    "BUILD_TYPE",
    "PAYLOAD_TYPE",
    "WorkFacts",
    "check_provenance",
    "compute_provenance_limit",
    "make_provenance",
    "make_statement",
]

BUILD_TYPE = "urn:tallystick:segments:1"
"""SLSA's `buildType`: which members the parameters have."""

RUNTIME_ALGORITHM = "tallyRuntime1"
"""Under which name the runtime's id stands in a digest set: it is hashed under a domain tag, so it is no plain
`sha256` of a file (R18).
"""

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""What DSSE says of the statement's bytes."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"

_HEAD_BYTES = 32_768
"""Room for everything in an envelope that does not grow with the records: 64 packages of 100 characters at most."""

_RECORD_BYTES = 512
"""Room per record: a subject, and a failure where there is one, in base64."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class WorkFacts:
    """What was done under one lease, as its final receipt has it. `records` are all of the lease's in order, at least
    one; `finished` is the receipt's.
    """

    chain: bytes
    order: Order
    order_id: bytes
    spec: JobSpec
    lease: bytes
    records: Sequence[SegmentRecord]
    environment: Environment
    finished: int


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """DSSE v1's JSON form; the members stand in the order of their names."""

    payload: str
    payloadType: str  # noqa: N815  # DSSE's own spelling
    signatures: tuple[_Signature, ...]


def make_provenance(signer: Signer, facts: WorkFacts) -> bytes:
    """The signed envelope, canonical JSON: what the provider stores and whose SHA-256 its final receipt names. Raises
    `Refused` under `provenance.statement` for facts that no statement can say.
    """
    payload = make_statement(facts)
    signature = _Signature(show_key(signer.key), b64encode(signer.sign_bytes(_encode_pae(payload))).decode())
    return msgspec.json.encode(_Envelope(b64encode(payload).decode(), PAYLOAD_TYPE, (signature,)))


def check_provenance(data: bytes, provider_key: bytes, facts: WorkFacts) -> None:
    """Check that `data` is the envelope that this provider makes of these facts, byte for byte but for the signature,
    which is verified. Raises `Refused` under `provenance.size`, `.form`, `.signature` or `.statement`.
    """
    limit = compute_provenance_limit(len(facts.records))
    if len(data) > limit:
        raise Refused(f"an envelope of {len(data)} bytes where at most {limit} are taken", rule="provenance.size")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        payload = b64decode(envelope.payload, validate=True)
        signatures = [(one.keyid, b64decode(one.sig, validate=True)) for one in envelope.signatures]
    except (msgspec.DecodeError, Base64Error, ValueError, RecursionError) as error:
        raise Refused(f"no DSSE envelope: {error}", rule="provenance.form") from error
    again = _Envelope(
        b64encode(payload).decode(),
        PAYLOAD_TYPE,
        tuple(_Signature(keyid, b64encode(signature).decode()) for keyid, signature in signatures),
    )
    if msgspec.json.encode(again) != data:
        raise Refused("the envelope is not in the one form it is made in", rule="provenance.form")
    if [keyid for keyid, _ in signatures] != [show_key(provider_key)]:
        raise Refused(f"the envelope is not signed by {show_key(provider_key)} alone", rule="provenance.signature")
    if not is_signature(provider_key, _encode_pae(payload), signatures[0][1]):
        raise Refused(f"the signature is not by {show_key(provider_key)}", rule="provenance.signature")
    if payload != make_statement(facts):
        raise Refused("the statement is not what receipt and records say", rule="provenance.statement")


def compute_provenance_limit(records: int) -> int:
    """Largest envelope over so many records, in bytes."""
    return _HEAD_BYTES + _RECORD_BYTES * records


def make_statement(facts: WorkFacts) -> bytes:
    """The statement as compact ASCII JSON with sorted names, without floats: numbers that may pass 2^53 are texts."""
    if not facts.records:
        raise Refused("a statement without outputs says nothing", rule="provenance.statement")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": f"segment/{record.index}", "digest": {"sha256": record.output.hex()}} for record in facts.records
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _describe_order(facts),
                "internalParameters": _describe_work(facts),
                "resolvedDependencies": _list_dependencies(facts),
            },
            "runDetails": {
                "builder": {"id": show_key(facts.records[0].provider)},
                "metadata": {
                    "invocationId": facts.lease.hex(),
                    "startedOn": _show_instant(facts.records[0].started),
                    "finishedOn": _show_instant(facts.finished),
                },
            },
        },
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _describe_order(facts: WorkFacts) -> dict[str, Any]:
    """What the requester decided, and which part of it this lease served."""
    return {
        "chain": facts.chain.hex(),
        "order": facts.order_id.hex(),
        "job": facts.order.job.hex(),
        "kind": facts.order.kind.value,
        "entry": facts.spec.entry.value,
        "function": facts.spec.function,
        "range": {"first": facts.records[0].index, "count": len(facts.records), "of": facts.order.segments},
        "seed": str(facts.spec.seed),
    }


def _describe_work(facts: WorkFacts) -> dict[str, Any]:
    """What the provider's machine added: isolation, numeric settings, and which segments failed."""
    return {
        "level": facts.environment.level,
        "threads": facts.environment.threads,
        "blas": facts.environment.blas,
        "failures": [
            {"segment": record.index, "cause": record.cause.value, "error": {"sha256": record.error.hex()}}
            for record in facts.records
            if record.cause is not Cause.OK
        ],
    }


def _list_dependencies(facts: WorkFacts) -> list[dict[str, Any]]:
    runtime = facts.spec.runtime
    found = [
        {"name": "code", "digest": {"sha256": facts.spec.code.hex()}},
        {"name": "inputs", "digest": {"sha256": facts.spec.inputs.hex()}},
        {
            "name": "runtime",
            "digest": {RUNTIME_ALGORITHM: facts.environment.runtime.hex()},
            "annotations": {"python": runtime.python, "packages": list(runtime.packages)},
        },
    ]
    if facts.order.kind is Kind.TRAIN:
        found.append({"name": "state", "digest": {"sha256": facts.records[0].input.hex()}})
    return found


def _encode_pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _show_instant(instant: int) -> str:
    """An Instant by RFC 3339, in UTC with milliseconds."""
    try:
        return (_EPOCH + timedelta(milliseconds=instant)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError as error:
        raise Refused(f"{instant} ms lies beyond what a date can say", rule="provenance.statement") from error
