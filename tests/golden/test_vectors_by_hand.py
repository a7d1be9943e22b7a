"""The golden vectors, checked by a second MessagePack, hashlib and OpenSSL alone: R18 as a stranger would read it.

Nothing here, nor in tests/support/wire.py, imports chain, msgspec or libsodium; a test sees to that.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import wire

FOLDER = Path(__file__).parent
FOREIGN = {"chain", "broker", "provider", "requester", "msgspec", "msgpack", "nacl"}


def read_vectors() -> list[Any]:
    files = sorted(FOLDER.glob("*.json"))
    vectors = [one for file in files for one in json.loads(file.read_text("utf-8"))]
    return [pytest.param(one, id=one["name"]) for one in vectors]


VECTORS = read_vectors()
SIGNED = [one for one in VECTORS if "signature" in one.values[0]]
TAGGED = [one for one in VECTORS if "tag" in one.values[0]]
PLAIN = [one for one in VECTORS if "tag" not in one.values[0]]


def build(value: Any) -> Any:
    """The tree that a vector's fields describe."""
    if isinstance(value, dict):
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        return [build(one) for one in value.values()]
    return [build(one) for one in value] if isinstance(value, list) else value


def get(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


def test_there_are_vectors() -> None:
    assert len(SIGNED) >= 23
    assert len(TAGGED) > len(SIGNED)
    assert PLAIN
    assert len({one.id for one in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_encoding_is_that_of_the_fields(vector: dict[str, Any]) -> None:
    tree = build(vector["fields"])
    assert wire.write(tree) == get(vector, "encoding")
    assert wire.read(get(vector, "encoding")) == tree


@pytest.mark.parametrize("vector", PLAIN)
def test_plain_digest_and_leaf(vector: dict[str, Any]) -> None:
    data = get(vector, "encoding")
    assert hashlib.sha256(data).digest() == get(vector, "digest")
    assert hashlib.sha256(b"\x00" + data).digest() == get(vector, "leaf")


@pytest.mark.parametrize("vector", TAGGED)
def test_signed_bytes_and_id(vector: dict[str, Any]) -> None:
    signed_bytes = wire.compute_signed_bytes(vector["tag"], get(vector, "chain"), get(vector, "encoding"))
    assert signed_bytes == get(vector, "signed_bytes")
    assert hashlib.sha256(signed_bytes).digest() == get(vector, "id")


@pytest.mark.parametrize("vector", SIGNED)
def test_the_signature_is_the_seed_s(vector: dict[str, Any]) -> None:
    private = Ed25519PrivateKey.from_private_bytes(get(vector, "seed"))
    assert private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) == get(vector, "key")
    assert private.sign(get(vector, "signed_bytes")) == get(vector, "signature")
    Ed25519PublicKey.from_public_bytes(get(vector, "key")).verify(get(vector, "signature"), get(vector, "signed_bytes"))


@pytest.mark.parametrize("vector", SIGNED)
def test_the_signed_object_is_body_and_signature(vector: dict[str, Any]) -> None:
    assert wire.read(get(vector, "signed_encoding")) == ["signed", build(vector["fields"]), get(vector, "signature")]
    assert wire.write(["signed", build(vector["fields"]), get(vector, "signature")]) == get(vector, "signed_encoding")


@pytest.mark.parametrize("file", [Path(__file__), Path(wire.__file__)], ids=lambda file: file.name)
def test_the_second_decoder_shares_no_code_with_the_first(file: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert not imported & FOREIGN
