"""Writes the golden vectors anew: `python -m tests.golden.write`, from the repository's root. See README.md."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest, compute_id, compute_signed_bytes
from chain.base.merkle import compute_leaf
from tests.support import samples, samples_ledger

FOLDER = Path(__file__).parent
Vectors = list[dict[str, Any]]


def render(value: Any) -> Any:
    """A value as JSON that names its fields."""
    if isinstance(value, msgspec.Struct):
        fields = {field.name: render(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
        return {"struct": value.__struct_config__.tag, **fields}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [render(one) for one in value]
    return value


def make_vector(name: str, tag: Tag, body: Any, chain_id: bytes = samples.CHAIN) -> dict[str, Any]:
    """What any object with an id has."""
    return {
        "name": name,
        "tag": tag.value,
        "chain": chain_id.hex(),
        "fields": render(body),
        "encoding": encode(body).hex(),
        "signed_bytes": compute_signed_bytes(tag, chain_id, body).hex(),
        "id": compute_id(tag, chain_id, body).hex(),
    }


def make_signed_vector(sample: samples.Sample) -> dict[str, Any]:
    """What a signed object has besides."""
    return {
        **make_vector(sample.name, sample.tag, sample.body),
        "seed": samples.SEEDS[sample.by].hex(),
        "key": samples.PARTIES[sample.by].key.hex(),
        "signature": sample.signed.signature.hex(),
        "signed_encoding": encode(sample.signed).hex(),
    }


def make_plain_vector(name: str, body: Any) -> dict[str, Any]:
    """What is hashed without a tag: by plain SHA-256, or as a leaf of RFC 6962."""
    data = encode(body)
    return {
        "name": name,
        "fields": render(body),
        "encoding": data.hex(),
        "digest": compute_digest(data).hex(),
        "leaf": compute_leaf(data).hex(),
    }


def make_all() -> dict[str, Vectors]:
    """The vectors of each file."""
    return {
        "terms": [make_signed_vector(one) for one in samples.TERMS],
        "bus": [make_signed_vector(one) for one in samples.BUS],
        "consensus": [make_signed_vector(one) for one in samples.CONSENSUS],
        "transactions": [make_signed_vector(one) for one in samples.list_transactions()],
        "hashed": [make_vector(name, tag, body, chain_id) for name, tag, chain_id, body in samples_ledger.HASHED],
        "plain": [make_plain_vector(*one) for one in samples_ledger.PLAIN],
    }


def show(vectors: Vectors) -> str:
    """The text of a file."""
    return json.dumps(vectors, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    for name, vectors in make_all().items():
        (FOLDER / f"{name}.json").write_text(show(vectors), encoding="utf-8")
        print(f"wrote {name}.json: {len(vectors)} vectors")
