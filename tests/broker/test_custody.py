"""Who holds and who may read which blob, against whose quota it counts, and when it goes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.service import custody as custody_module
from broker.service.custody import OUTPUT, UPLOAD, Custody
from broker.service.settings import UPLOAD_GRACE
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from tests.broker.test_jobs import connect
from tests.broker.world import NOW, PROVIDERS, REQUESTER, STRANGER

A, B, C = compute_digest(b"a"), compute_digest(b"b"), compute_digest(b"c")


def make_custody(quota: int = 100, capacity: int = 1_000) -> Custody:
    return Custody(connect(custody_module.SCHEMA), quota, capacity)


def test_holds_count_and_rights_do_not() -> None:
    custody = make_custody()
    custody.hold({A: 60}, REQUESTER.key, NOW)
    custody.grant([A], STRANGER.key, NOW)
    assert (custody.compute_held(REQUESTER.key), custody.compute_held(STRANGER.key)) == (60, 0)
    assert custody.get_size(A, STRANGER.key) == 60
    assert custody.get_size(A, PROVIDERS[0].key) is None
    custody.hold({A: 60}, STRANGER.key, NOW)
    assert custody.compute_held(STRANGER.key) == 60


def count_steps(custody: Custody, ask: Any) -> int:
    """Steps of SQLite's machine for a question."""
    steps = [0]

    def step() -> int:
        steps[0] += 1
        return 0

    custody._connection.set_progress_handler(step, 1)
    ask()
    custody._connection.set_progress_handler(None, 1)
    return steps[0]


def test_what_an_account_holds_is_told_at_once_however_many_blobs_it_has() -> None:
    """Each upload asks: else a thousand parcels of single bytes would make every later request cost seconds."""
    custody = make_custody(quota=1 << 30)
    few = count_steps(custody, lambda: custody.compute_held(REQUESTER.key))
    custody.hold({bytes([n >> 8, n & 255]) * 16: 1 for n in range(5_000)}, REQUESTER.key, NOW)
    assert count_steps(custody, lambda: custody.compute_held(REQUESTER.key)) <= few + 10
    assert custody.compute_held(REQUESTER.key) == 5_000


def test_the_number_of_blobs_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody_module, "MAX_BLOBS", 2)
    custody = make_custody()
    custody.hold({A: 1}, REQUESTER.key, NOW)
    with custody.room(REQUESTER.key, 1):
        custody.hold({B: 0}, REQUESTER.key, NOW)
    with pytest.raises(Refused, match="2 blobs") as refused, custody.room(REQUESTER.key, 0):
        pass
    assert refused.value.rule == "blob.quota"
    with custody.room(STRANGER.key, 1):
        pass


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "hand over", "grant", "extend", "renew", "sweep", "start"]),
        st.sampled_from([REQUESTER.key, STRANGER.key]),
        st.sampled_from([A, B]),
        st.integers(NOW, NOW + 5),
    ),
    max_size=25,
)


@given(STEPS)
def test_the_totals_are_the_sum_of_what_is_held(steps: list[tuple[str, bytes, bytes, int]]) -> None:
    """Also of a broker that was started again in between."""
    rows = connect(custody_module.SCHEMA)
    quota = 66
    custody, sizes = Custody(rows, quota, 10**6), {A: 60, B: 7}
    query = "SELECT coalesce(sum(size), 0) FROM custody JOIN blobs USING (digest) WHERE account = ? AND held = ?"
    for action, account, digest, time in steps:
        match action:
            case "hold":
                custody.hold({digest: sizes[digest]}, account, time)
            case "hand over":
                custody.hand_over({digest: sizes[digest]}, account, STRANGER.key, time)
            case "grant":
                custody.grant([digest], account, time)
            case "extend":
                with contextlib.suppress(Refused):
                    custody.extend([digest], account, time)
            case "renew":
                custody.renew(digest, account, time)
            case "sweep":
                custody.sweep(time)
            case "start":
                fresh = connect("")
                rows.execute("DROP TABLE account_totals")
                rows.backup(fresh)
                rows, custody = fresh, Custody(fresh, quota, 10**6)
            case _:
                pass
        for key in (REQUESTER.key, STRANGER.key):
            for held in (UPLOAD, OUTPUT):
                assert custody.compute_held(key, held) == rows.execute(query, (key, held)).fetchone()[0]


def test_what_a_receipt_names_leaves_its_providers_quota() -> None:
    """Else large jobs would fill it, and an honest provider could not hand in and would be fined."""
    custody, provider = make_custody(quota=100), PROVIDERS[0].key
    custody.hold({A: 60}, REQUESTER.key, NOW + 5)
    custody.hold({B: 70}, provider, NOW)
    custody.hand_over({B: 70}, provider, REQUESTER.key, NOW + 9)
    assert (custody.compute_held(provider), custody.compute_held(provider, OUTPUT)) == (0, 0)
    assert (custody.compute_held(REQUESTER.key), custody.compute_held(REQUESTER.key, OUTPUT)) == (60, 70)
    custody.hand_over({B: 70}, provider, REQUESTER.key, NOW + 9)  # said again after a power cut
    assert custody.compute_held(REQUESTER.key, OUTPUT) == 70
    with custody.room(provider, 100), custody.room(REQUESTER.key, 40):
        pass
    custody.sweep(NOW + 9)
    for reader in (provider, REQUESTER.key):
        assert custody.get_size(B, reader) == 70
    assert custody.sweep(NOW + 10) == [B]


def test_outputs_beyond_their_requesters_share_are_still_its_own() -> None:
    """A requester with a full share shuts no provider out of other jobs; what it may do is order no more."""
    custody, provider, until = make_custody(quota=100), PROVIDERS[0].key, NOW + 97 * 24 * UPLOAD_GRACE
    for digest, size in ((A, 60), (B, 100)):
        custody.check_outputs(REQUESTER.key)
        with custody.room(provider, size):
            custody.hold({digest: size}, provider, NOW)
        custody.hand_over({digest: size}, provider, REQUESTER.key, until)
    assert (custody.compute_held(provider), custody.compute_held(REQUESTER.key, OUTPUT)) == (0, 160)
    with pytest.raises(Refused, match="160 bytes of results") as refused:
        custody.check_outputs(REQUESTER.key)
    assert refused.value.rule == "order.outputs"
    with custody.room(provider, 100), custody.room(REQUESTER.key, 100):
        custody.check_outputs(STRANGER.key)
    custody.sweep(until + 1)
    custody.check_outputs(REQUESTER.key)


def test_the_number_of_outputs_ends_orders_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody_module, "MAX_BLOBS", 2)
    custody = make_custody()
    for digest in (A, B):
        custody.check_outputs(REQUESTER.key)
        custody.hand_over({digest: 1}, PROVIDERS[0].key, REQUESTER.key, NOW)
    with pytest.raises(Refused) as refused:
        custody.check_outputs(REQUESTER.key)
    assert refused.value.rule == "order.outputs"


def test_what_is_sent_again_is_its_providers_for_the_grace_and_no_longer() -> None:
    """A parcel that is repeated after its receipt was taken: the answer got lost, and nothing hands it over again."""
    custody, provider = make_custody(quota=100), PROVIDERS[0].key
    custody.hold({A: 60}, provider, NOW + UPLOAD_GRACE)
    custody.hand_over({A: 60}, provider, REQUESTER.key, NOW + 97 * 24 * UPLOAD_GRACE)
    custody.hold({A: 60}, provider, NOW + UPLOAD_GRACE)
    custody.sweep(NOW + UPLOAD_GRACE + 1)
    assert custody.compute_held(provider) == 0
    assert custody.get_size(A, provider) == custody.compute_held(REQUESTER.key, OUTPUT) == 60


def test_who_hands_over_what_it_needs_longer_itself_keeps_it() -> None:
    """A provider whose result has the bytes of its own order's inputs."""
    custody, provider = make_custody(quota=100), PROVIDERS[0].key
    custody.hold({A: 60}, provider, NOW + 20)
    custody.hand_over({A: 60}, provider, REQUESTER.key, NOW + 10)
    assert custody.sweep(NOW + 11) == []
    assert custody.compute_held(provider) == custody.get_size(A, provider) == 60


def test_keeping_what_one_may_only_read_counts_against_the_quota() -> None:
    custody, orders = make_custody(quota=100), REQUESTER.key
    for digest in (A, B):
        custody.hold({digest: 60}, STRANGER.key, NOW)
        custody.grant([digest], orders, NOW)
    custody.extend([A, A], orders, NOW + 9)
    assert custody.compute_held(orders) == 60
    with pytest.raises(Refused) as refused:
        custody.extend([A, B], orders, NOW + 19)
    assert refused.value.rule == "blob.quota"
    custody.sweep(NOW + 10)
    assert (custody.compute_held(orders), custody.get_size(A, orders)) == (0, None)


def test_what_was_made_for_an_account_is_kept_without_counting_twice() -> None:
    """Results of one order are inputs of the next."""
    custody = make_custody(quota=100)
    custody.hand_over({A: 100}, PROVIDERS[0].key, REQUESTER.key, NOW)
    custody.hold({B: 100}, REQUESTER.key, NOW)
    custody.extend([A, B], REQUESTER.key, NOW + 9)
    assert custody.compute_held(REQUESTER.key) == custody.compute_held(REQUESTER.key, OUTPUT) == 100
    assert custody.sweep(NOW + 9) == []


def test_only_what_an_account_sent_may_stand_in_its_receipt() -> None:
    """Also what it sent before, for whomever: equal outputs of two leases are sent once."""
    custody, provider, rival = make_custody(), PROVIDERS[0].key, PROVIDERS[1].key
    custody.hold({A: 60}, provider, NOW)
    custody.hold({B: 7}, REQUESTER.key, NOW)
    custody.grant([A, B], rival, NOW)
    custody.grant([B], provider, NOW)
    custody.hand_over({A: 60}, provider, REQUESTER.key, NOW)
    custody.grant([A], provider, NOW)  # a train that comes back to it
    assert custody.measure_sent([A], provider) == {A: 60}
    assert custody.renew(A, provider, NOW) == 60
    for digest, account in ((B, provider), (A, rival), (C, provider)):
        with pytest.raises(Refused) as refused:
            custody.measure_sent([digest], account)
        assert refused.value.rule == "blob.missing"
        assert custody.renew(digest, account, NOW) is None
    custody.hold({A: 60}, rival, NOW)
    assert custody.measure_sent([A], rival) == {A: 60}


def test_rights_of_an_earlier_release_stay_rights() -> None:
    rows = connect(custody_module.SCHEMA)
    rows.execute("INSERT INTO blobs VALUES (?, 60)", (A,))
    rows.executemany(
        "INSERT INTO custody VALUES (?, ?, ?, ?)", [(A, PROVIDERS[0].key, 0, NOW), (A, REQUESTER.key, OUTPUT, NOW)]
    )
    custody = Custody(rows, 100, 1_000)
    assert (custody.compute_held(PROVIDERS[0].key), custody.measure_sent([A], PROVIDERS[0].key)) == (0, {A: 60})
    assert custody.compute_held(REQUESTER.key, OUTPUT) == 60
    assert custody.sweep(NOW + 1) == [A]
    assert rows.execute("SELECT count(*) FROM rights").fetchone() == (0,)


def test_what_a_provider_holds_as_its_own_outputs_stays_so() -> None:
    """Who sells may also buy: the same bytes may be its result, and its goods."""
    custody, both = make_custody(), PROVIDERS[0].key
    custody.hand_over({A: 60}, STRANGER.key, both, NOW)
    custody.hand_over({A: 60}, both, REQUESTER.key, NOW)
    assert custody.compute_held(both, OUTPUT) == custody.compute_held(REQUESTER.key, OUTPUT) == 60


def test_a_right_to_what_is_not_there_is_none() -> None:
    custody = make_custody()
    custody.grant([B], STRANGER.key, NOW + 9)
    assert custody.get_size(B, STRANGER.key) is None
    custody.hold({B: 7}, REQUESTER.key, NOW)
    assert custody.get_size(B, STRANGER.key) is None


def test_room_counts_what_is_on_its_way() -> None:
    custody = make_custody(quota=100, capacity=150)
    custody.hold({A: 40}, REQUESTER.key, NOW)
    with custody.room(REQUESTER.key, 60), pytest.raises(Refused) as refused, custody.room(REQUESTER.key, 1):
        pass
    assert refused.value.rule == "blob.quota"
    with custody.room(REQUESTER.key, 60), pytest.raises(Unavailable) as full, custody.room(STRANGER.key, 51):
        pass
    assert full.value.rule == "blob.full"
    with custody.room(REQUESTER.key, 60):
        pass


def test_a_blob_goes_when_the_last_who_holds_it_has_gone() -> None:
    """What only a right would keep counts for nobody; and whose expiry is far would keep it for ever."""
    custody = make_custody(capacity=100)
    custody.hold({A: 60}, REQUESTER.key, NOW)
    custody.grant([A], STRANGER.key, NOW + 10**12)
    custody.extend([A], REQUESTER.key, NOW - 5)
    assert custody.sweep(NOW) == []
    assert custody.get_size(A, STRANGER.key) == 60
    assert custody.sweep(NOW + 1) == [A]
    with custody.room(REQUESTER.key, 100):
        custody.hold({A: 60}, REQUESTER.key, NOW + 5)
    assert custody.get_size(A, STRANGER.key) is None
