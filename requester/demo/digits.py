"""The jobs of the demo: a small neural network, in NumPy alone, that learns to read handwritten digits.

Three functions travel to providers: `score` (one setting on one fold, an item of a `map`), `run_epoch` (one epoch, a
segment of a `train`) and `judge` (the hold-out, a `run`). Each is self-contained and gives plain values and arrays.
The held-out quarter of the digits is set apart before anything is chosen, and only `judge` ever sees it.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.protocol.reporting import report

Pixels = NDArray[np.uint8]
"""Images, shape (n, 64), values 0..16."""

Labels = NDArray[np.uint8]
"""Digits 0..9, shape (n,)."""

FOLDS = 3
"""Parts of the training digits, each of which is once the part that a setting is scored on."""

SETTINGS = tuple(
    {"hidden": hidden, "rate": rate, "decay": decay}
    for hidden, rate, decay in product((16, 32, 64), (0.03, 0.1), (1e-4, 3e-3))
)
"""The grid that is searched: neurons, learning rate, weight decay. Twelve settings."""

SCORE_EPOCHS = 16
"""Epochs by which a setting is judged: with half as many the folds rank settings by how fast they start."""

EPOCHS = 30
"""Epochs of the training."""


def load_digits() -> tuple[Pixels, Labels]:
    """The 1,797 images, shape (1797, 64), and their labels. Raises `ModuleNotFoundError` where scikit-learn is not
    installed.
    """
    from sklearn.datasets import load_digits as load  # only the demo's buyer needs it, and it takes a second

    bunch = load()
    return bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)


def split(labels: Labels, seed: int, share: float = 0.25) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of a stratified shuffled split: (training rows, held-out rows). Each class gives `share` of its rows,
    rounded, to the hold-out.
    """
    rng = np.random.default_rng(seed)
    train_parts, held_parts = [], []
    for digit in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        cut = round(len(rows) * share)
        held_parts.append(rows[:cut])
        train_parts.append(rows[cut:])
    return rng.permutation(np.concatenate(train_parts)), rng.permutation(np.concatenate(held_parts))


def list_items() -> list[dict[str, Any]]:
    """Each setting with each fold, in the order in which they are bought."""
    return [{**setting, "fold": fold} for setting in SETTINGS for fold in range(FOLDS)]


def choose_setting(scores: list[float]) -> tuple[dict[str, Any], float]:
    """The setting with the best mean over its folds, and that mean; `scores` belong to `list_items`. Among equals the
    first, which is the smallest.
    """
    means = [float(np.mean(scores[at : at + FOLDS])) for at in range(0, len(scores), FOLDS)]
    best = int(np.argmax(means))
    return SETTINGS[best], means[best]


# ---- the network ----


def make_state(setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fresh weights, no speed, and the setting: what `run_epoch` starts from."""
    rng = np.random.default_rng(seed)
    hidden = setting["hidden"]
    weights = {
        "w1": (rng.standard_normal((64, hidden)) * 0.18).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": (rng.standard_normal((hidden, 10)) * 0.15).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    speed = {name: np.zeros_like(value) for name, value in weights.items()}
    return {"weights": weights, "speed": speed, "rate": setting["rate"], "decay": setting["decay"], "seed": seed}


def forward(weights: dict[str, Any], x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hidden activations (n, hidden) and class probabilities (n, 10)."""
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    logits = hidden @ weights["w2"] + weights["b2"]
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, raised / raised.sum(axis=1, keepdims=True)


def fit_batch(state: dict[str, Any], x: NDArray[np.float32], y: Labels) -> float:
    """One step of gradient descent with momentum on the cross-entropy of a batch; changes the state's weights and
    speed, returns the loss.
    """
    weights, speed = state["weights"], state["speed"]
    hidden, probability = forward(weights, x)
    loss = float(-np.log(probability[np.arange(len(y)), y] + 1e-9).mean())
    probability[np.arange(len(y)), y] -= 1
    slope = probability / len(y)
    back = (slope @ weights["w2"].T) * (hidden > 0)
    gradient = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ slope, "b2": slope.sum(axis=0)}
    for name, step in gradient.items():
        speed[name] = np.float32(0.9) * speed[name] - np.float32(state["rate"]) * (
            step + np.float32(state["decay"]) * weights[name]
        )
        weights[name] = weights[name] + speed[name]
    return loss


def fit_epoch(state: dict[str, Any], x: NDArray[np.float32], y: Labels, epoch: int) -> float:
    """One epoch over all rows in batches of about 32, shuffled by the state's seed and the epoch; the mean loss."""
    rng = np.random.default_rng([state["seed"], epoch])
    batches = np.array_split(rng.permutation(len(y)), max(1, len(y) // 32))
    return float(np.mean([fit_batch(state, x[rows], y[rows]) for rows in batches]))


# ---- what is bought ----


def score(images: Pixels, labels: Labels, seed: int, item: dict[str, Any]) -> float:
    """Accuracy on the item's fold of a network trained on the others: one segment of the search. Images and labels are
    the training ones alone.
    """
    x = (images / 16).astype(np.float32)
    inside = np.arange(len(labels)) % FOLDS != item["fold"]
    state = make_state(item, seed)
    for epoch in range(SCORE_EPOCHS):
        fit_epoch(state, x[inside], labels[inside], epoch)
    guesses = forward(state["weights"], x[~inside])[1].argmax(axis=1)
    accuracy = float((guesses == labels[~inside]).mean())
    report(accuracy=round(accuracy, 4))
    return accuracy


def run_epoch(images: Pixels, labels: Labels, state: dict[str, Any], index: int) -> dict[str, Any]:
    """The state after one more epoch on the training digits: one segment of the training."""
    loss = fit_epoch(state, (images / 16).astype(np.float32), labels, index)
    report(loss=round(loss, 6))
    return state


def judge(weights: dict[str, Any], images: Pixels, labels: Labels) -> dict[str, Any]:
    """`accuracy` on digits that nothing was chosen by, and the `confusion` matrix (10, 10): rows are the truth."""
    guesses = forward(weights, (images / 16).astype(np.float32))[1].argmax(axis=1)
    confusion = np.zeros((10, 10), np.int64)
    np.add.at(confusion, (labels, guesses), 1)
    return {"accuracy": float((guesses == labels).mean()), "confusion": confusion}
