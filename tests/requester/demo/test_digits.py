"""The demo's job: the split is stratified, disjoint and fixed by its seed; the network learns; the hold-out is never
trained on."""

from __future__ import annotations

import numpy as np
import pytest

from requester.demo import digits


@pytest.fixture(scope="module")
def data() -> tuple[digits.Pixels, digits.Labels]:
    return digits.load_digits()


def test_the_data_are_the_1797_digits(data: tuple[digits.Pixels, digits.Labels]) -> None:
    images, labels = data
    assert images.shape == (1797, 64)
    assert images.max() == 16
    assert np.bincount(labels).min() >= 174


def test_the_split_is_stratified_disjoint_and_complete(data: tuple[digits.Pixels, digits.Labels], seed: int) -> None:
    labels = data[1]
    train, held = digits.split(labels, seed)
    assert sorted([*train, *held]) == list(range(1797))
    for digit in range(10):
        share = (labels[held] == digit).sum() / (labels == digit).sum()
        assert abs(share - 0.25) < 0.005


def test_the_same_seed_gives_the_same_split_and_another_seed_another(data: tuple[digits.Pixels, digits.Labels]) -> None:
    labels = data[1]
    assert (digits.split(labels, 1)[1] == digits.split(labels, 1)[1]).all()
    assert (digits.split(labels, 1)[1] != digits.split(labels, 2)[1]).any()


def test_training_reaches_95_percent_on_rows_it_never_saw(data: tuple[digits.Pixels, digits.Labels]) -> None:
    images, labels = data
    result = digits.train(images, labels, seed=7)
    assert result["accuracy"] >= 0.95
    assert result["accuracy"] == (result["predictions"] == result["truth"]).mean()
    assert result["loss"][-1] < result["loss"][0]


def test_held_out_labels_do_not_reach_the_weights(data: tuple[digits.Pixels, digits.Labels]) -> None:
    images, labels = data
    held = digits.split(labels, 7)[1]
    blank = images.copy()
    blank[held] = 0
    honest = digits.train(images, labels, seed=7, epochs=2)["weights"]
    without = digits.train(blank, labels, seed=7, epochs=2)["weights"]
    assert all((honest[name] == without[name]).all() for name in honest)
