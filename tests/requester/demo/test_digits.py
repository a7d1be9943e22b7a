"""The demo's jobs: the split is stratified, disjoint and fixed by its seed; the search ranks settings by training
digits alone; the network learns; the hold-out is never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from requester.demo import digits

Data = tuple[digits.Pixels, digits.Labels]


@pytest.fixture(scope="module")
def data() -> Data:
    return digits.load_digits()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "report", lambda **_values: None)


def train(data: Data, seed: int, epochs: int) -> dict[str, object]:
    images, labels = data
    rows, _ = digits.split(labels, seed)
    state = digits.make_state(digits.SETTINGS[5], seed)
    for epoch in range(epochs):
        state = digits.run_epoch(images[rows], labels[rows], state, epoch)
    return state


def test_the_data_are_the_1797_digits(data: Data) -> None:
    images, labels = data
    assert images.shape == (1797, 64)
    assert images.max() == 16
    assert np.bincount(labels).min() >= 174


def test_the_split_is_stratified_disjoint_and_complete(data: Data, seed: int) -> None:
    labels = data[1]
    rows, held = digits.split(labels, seed)
    assert sorted([*rows, *held]) == list(range(1797))
    for digit in range(10):
        share = (labels[held] == digit).sum() / (labels == digit).sum()
        assert abs(share - 0.25) < 0.005


def test_the_same_seed_gives_the_same_split_and_another_seed_another(data: Data) -> None:
    labels = data[1]
    assert (digits.split(labels, 1)[1] == digits.split(labels, 1)[1]).all()
    assert (digits.split(labels, 1)[1] != digits.split(labels, 2)[1]).any()


def test_the_search_is_each_of_twelve_settings_with_each_of_three_folds() -> None:
    items = digits.list_items()
    assert len(digits.SETTINGS) >= 12
    assert len({tuple(item.items()) for item in items}) == len(items) == len(digits.SETTINGS) * 3
    scores = [float(item["rate"] == 0.1 and item["hidden"] == 32) for item in items]
    setting, mean = digits.choose_setting(scores)
    assert (setting["rate"], setting["hidden"], mean) == (0.1, 32, 1.0)


def test_among_equal_settings_the_first_is_chosen() -> None:
    assert digits.choose_setting([0.5] * len(digits.list_items())) == (digits.SETTINGS[0], 0.5)


def test_a_score_is_an_accuracy_on_rows_the_network_was_not_trained_on(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = data
    item = {**digits.SETTINGS[4], "fold": 1}
    monkeypatch.setattr(digits, "SCORE_EPOCHS", 2)
    assert 0.5 < digits.score(images, labels, 7, item) < 1
    inside = np.arange(len(labels)) % digits.FOLDS != 1
    shuffled = labels.copy()
    shuffled[inside] = (labels[inside] + 1) % 10
    assert digits.score(images, shuffled, 7, item) < 0.1


def test_training_reaches_95_percent_on_rows_it_never_saw(data: Data) -> None:
    images, labels = data
    state = train(data, 7, digits.EPOCHS)
    _, held = digits.split(labels, 7)
    judged = digits.judge(state["weights"], images[held], labels[held])  # type: ignore[arg-type]  # a plain dict
    assert judged["accuracy"] >= 0.95
    assert judged["confusion"].sum() == len(held)
    assert judged["accuracy"] == np.trace(judged["confusion"]) / len(held)
    assert (judged["confusion"].sum(axis=1) == np.bincount(labels[held])).all()


def test_the_loss_of_each_epoch_is_reported(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []

    def keep(loss: float) -> None:
        losses.append(loss)

    monkeypatch.setattr(digits, "report", keep)
    train(data, 7, 5)
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5


def test_held_out_digits_do_not_reach_the_weights(data: Data) -> None:
    images, labels = data
    held = digits.split(labels, 7)[1]
    blank = images.copy()
    blank[held] = 0
    honest, without = train((images, labels), 7, 2)["weights"], train((blank, labels), 7, 2)["weights"]
    assert isinstance(honest, dict)
    assert isinstance(without, dict)
    assert all((honest[name] == without[name]).all() for name in honest)
