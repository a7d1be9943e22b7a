"""R18: which 32 bytes are an account, how an account is written, and which signatures count (threats.md 6 and 7)."""

from __future__ import annotations

import nacl.bindings
import nacl.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base import keys
from chain.base.hashing import Tag
from chain.base.keys import BadKey, BadSignature, Signer, check_key, is_key, is_signature, parse_key, show_key, verify

ORDER = 2**252 + 27742317777372353535851937790883648493
"""L, the order of the prime subgroup."""

PRIME = 2**255 - 19
SIGN_BIT = 1 << 255
SIGNER = Signer(bytes(range(32)))
RFC8032_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC8032_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def pack(y: int) -> bytes:
    return y.to_bytes(32, "little")


EIGHTH = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
OTHER_EIGHTH = PRIME - EIGHTH
SMALL = {"order 4": 0, "order 1": 1, "order 2": PRIME - 1, "order 8": EIGHTH, "order 8, other": OTHER_EIGHTH}
TORSION = {
    **{f"{name}{', sign' * bit}": pack(y | bit * SIGN_BIT) for name, y in SMALL.items() for bit in (0, 1)},
    **{f"p + {add}{', sign' * bit}": pack((PRIME + add) | bit * SIGN_BIT) for add in range(19) for bit in (0, 1)},
}
"""The points of the 8-torsion in all spellings, and every other y that is not reduced."""


@pytest.mark.parametrize("key", TORSION.values(), ids=TORSION)
def test_small_order_and_unreduced_points_are_no_keys(key: bytes) -> None:
    assert not is_key(key)
    with pytest.raises(BadKey) as refused:
        check_key(key)
    assert refused.value.rule == "R18.key"


@pytest.mark.parametrize("name", ["order 4", "order 2", "order 8", "order 8, other", "order 8, sign"])
def test_a_key_with_a_torsion_part_is_no_key(name: str) -> None:
    """An honest key plus a point of small order lies on the curve, outside the prime subgroup."""
    mixed = nacl.bindings.crypto_core_ed25519_add(SIGNER.key, TORSION[name])
    assert mixed != SIGNER.key
    assert is_key(SIGNER.key)
    assert not is_key(mixed)


def test_bytes_that_are_no_point_are_no_key() -> None:
    assert [y for y in range(2, 12) if is_key(pack(y))] != list(range(2, 12))
    assert not is_key(b"\xff" * 32)


@pytest.mark.parametrize("key", [b"", SIGNER.key[:31], SIGNER.key + b"\x00", bytes(64)], ids=len)
def test_a_key_has_32_bytes(key: bytes) -> None:
    assert not is_key(key)
    with pytest.raises(BadKey):
        check_key(key)


def test_a_good_key_is_given_back() -> None:
    assert check_key(SIGNER.key) is SIGNER.key
    assert Signer(RFC8032_SEED).key == RFC8032_KEY
    assert is_key(RFC8032_KEY)


def test_the_costly_check_is_made_once_per_key() -> None:
    key = Signer(b"cached".ljust(32, b"\x00")).key
    is_key(key)
    before = is_key.cache_info()
    is_key(key)
    after = is_key.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert after.maxsize == 65_536


@given(st.binary(min_size=32, max_size=32))
def test_every_account_survives_both_texts(seed: bytes) -> None:
    key = Signer(seed).key
    text = show_key(key)
    assert text.startswith("did:key:z6Mk")
    assert parse_key(text) == parse_key(f"  {text}\n") == parse_key(key.hex()) == parse_key(key.hex().upper()) == key


def test_the_text_of_a_known_key() -> None:
    """A test vector of the did:key method: the account of the all-zero seed."""
    text = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"
    key = parse_key(text)
    assert key.hex() == "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    assert key == Signer(bytes(32)).key
    assert show_key(key) == text


DID = show_key(SIGNER.key)
HEX = SIGNER.key.hex()
MALFORMED = {
    "nothing": "",
    "only the prefix": "did:key:z",
    "no multibase letter": DID.replace("did:key:z", "did:key:"),
    "another method": DID.replace("did:key", "did:web"),
    "upper-case method": DID.replace("did:key", "DID:KEY"),
    "one character less": DID[:-1],
    "one character more": f"{DID}1",
    "leading ones": DID.replace(":z", ":z1"),
    "many leading ones": DID.replace(":z", ":z" + "1" * 12),
    "a zero, which base58 has not": f"{DID[:-1]}0",
    "a letter l": f"{DID[:-1]}l",
    "a fragment": f"{DID}#{DID[8:]}",
    "a space inside": f"{DID[:20]} {DID[20:]}",
    "very long": DID + "2" * 1000,
    "an X25519 key": "did:key:z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc",
    "a secp256k1 key": "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
    "63 digits": HEX[:-1],
    "62 digits": HEX[:-2],
    "66 digits": f"{HEX}00",
    "0x": f"0x{HEX}",
    "spaces between digits": f"{HEX[:2]} {HEX[2:]}",
    "line break between digits": f"{HEX[:32]}\n{HEX[32:]}",
    "a letter g": f"g{HEX[1:]}",
    "wide digits": HEX.translate({ord(digit): 0xFEE0 + ord(digit) for digit in "0123456789"}),
    "small order": "01" + "00" * 31,
    "small order as did": show_key(b"\x01" + bytes(31)),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_text_that_shows_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadKey) as refused:
        parse_key(text)
    assert refused.value.rule == "R18.key"
    assert len(str(refused.value)) < 400


def test_a_long_text_is_refused_before_it_is_reckoned_with() -> None:
    """Base 58 takes quadratic time: without the bound this would be an OverflowError after all the work."""
    with pytest.raises(ValueError):
        keys._decode_base58("2" * 65)


@given(st.text(max_size=60))
def test_arbitrary_texts_are_refused_or_a_key(text: str) -> None:
    for candidate in (text, f"did:key:z{text}"):
        try:
            assert is_key(parse_key(candidate))
        except BadKey:
            pass


def test_a_signature_with_s_plus_l_is_refused() -> None:
    """threats.md row 6: the same signature must have one form."""
    signature = SIGNER.sign_bytes(b"message")
    s = int.from_bytes(signature[32:], "little")
    for times in range(1, 8):
        other = signature[:32] + (s + times * ORDER).to_bytes(32, "little")
        assert not is_signature(SIGNER.key, b"message", other), times
    assert is_signature(SIGNER.key, b"message", signature)


@pytest.mark.parametrize("key", TORSION.values(), ids=TORSION)
def test_no_signature_counts_for_a_point_of_small_order(key: bytes) -> None:
    """R = A or the identity with S = 0 satisfies the bare equation for many messages."""
    for r in (pack(1), key):
        for message in range(16):
            assert not is_signature(key, bytes([message]), r + bytes(32))


def test_a_signature_with_an_r_of_small_order_is_refused() -> None:
    for r in TORSION.values():
        assert not is_signature(SIGNER.key, b"message", r + SIGNER.sign_bytes(b"message")[32:])


WRONG_SIZES = [(31, 64), (33, 64), (0, 64), (32, 63), (32, 65), (32, 0)]


@pytest.mark.parametrize(("key", "signature"), WRONG_SIZES)
def test_wrong_sizes_are_refused_and_do_not_raise(key: int, signature: int) -> None:
    signed = SIGNER.sign_bytes(b"m").ljust(80, b"\x00")[:signature]
    assert not is_signature(SIGNER.key.ljust(40, b"\x00")[:key], b"m", signed)


def test_a_message_cannot_be_moved_into_the_signature() -> None:
    signature = SIGNER.sign_bytes(b"ab")
    assert not is_signature(SIGNER.key, b"b", signature + b"a")


def test_verify_gives_the_body_and_names_the_tag_it_refuses() -> None:
    signed = SIGNER.sign(Tag.JOB, bytes(32), ("a", 1))
    assert verify(signed, Tag.JOB, bytes(32), SIGNER.key) == ("a", 1)
    with pytest.raises(BadSignature) as refused:
        verify(signed, Tag.JOB, bytes(32), Signer(bytes(32)).key)
    assert refused.value.rule == "signature.job"
    assert "tally/job/1" in str(refused.value)


def test_signing_is_deterministic_and_hides_the_secret() -> None:
    assert SIGNER.sign_bytes(b"m") == Signer(bytes(range(32))).sign_bytes(b"m")
    assert bytes(range(32)).hex() not in repr(SIGNER)
    assert repr(SIGNER) == f"Signer({DID})"
    assert not hasattr(SIGNER, "__dict__")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_has_32_bytes(size: int) -> None:
    with pytest.raises(nacl.exceptions.ValueError):
        Signer(bytes(size))


def test_rfc_8032_test_1() -> None:
    signature = Signer(RFC8032_SEED).sign_bytes(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert keys.is_signature(RFC8032_KEY, b"", signature)
