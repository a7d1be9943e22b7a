"""The job of the demo: a small neural network, in NumPy alone, that learns to read handwritten digits.

`train` is what travels to the provider: it is self-contained, prints its progress, and returns plain values and
arrays. The data are the 1,797 digits that ship with scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Images, shape (n, 64), values 0..16."""

Labels = NDArray[np.uint8]
"""Digits 0..9, shape (n,)."""


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


def forward(weights: dict[str, Any], x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hidden activations (n, hidden) and class probabilities (n, 10)."""
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    logits = hidden @ weights["w2"] + weights["b2"]
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, raised / raised.sum(axis=1, keepdims=True)


def fit_batch(weights: dict[str, Any], speed: dict[str, Any], x: NDArray[np.float32], y: Labels, rate: float) -> float:
    """One step of gradient descent with momentum on the cross-entropy of a batch; changes `weights` and `speed`,
    returns the loss.
    """
    hidden, probability = forward(weights, x)
    loss = float(-np.log(probability[np.arange(len(y)), y] + 1e-9).mean())
    probability[np.arange(len(y)), y] -= 1
    slope = probability / len(y)
    back = (slope @ weights["w2"].T) * (hidden > 0)
    gradient = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ slope, "b2": slope.sum(axis=0)}
    for name, step in gradient.items():
        speed[name] = 0.9 * speed[name] - rate * (step + 1e-4 * weights[name])
        weights[name] += speed[name]
    return loss


def train(
    images: Pixels, labels: Labels, seed: int, hidden: int = 64, epochs: int = 40, rate: float = 0.1
) -> dict[str, Any]:
    """Train on 75 % of the images and report the accuracy on the held-out rest.

    Returns `weights` (w1 (64, hidden), b1, w2 (hidden, 10), b2), `accuracy` (a share), `held_out` (rows),
    `predictions` and `truth` of the held-out rows, and `loss` per epoch.
    """
    rows, held = split(labels, seed)
    x = (images / 16).astype(np.float32)
    rng = np.random.default_rng(seed + 1)
    weights = {
        "w1": (rng.standard_normal((64, hidden)) * 0.18).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": (rng.standard_normal((hidden, 10)) * 0.15).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    speed = {name: np.zeros_like(value) for name, value in weights.items()}
    losses = []
    for epoch in range(epochs):
        batches = np.array_split(rng.permutation(rows), len(rows) // 32)
        losses.append(float(np.mean([fit_batch(weights, speed, x[b], labels[b], rate) for b in batches])))
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {losses[-1]:.4f}", flush=True)  # noqa: T201  # the job's own output
    predictions = forward(weights, x[held])[1].argmax(axis=1).astype(np.uint8)
    accuracy = float((predictions == labels[held]).mean())
    return {
        "weights": weights,
        "accuracy": accuracy,
        "held_out": len(held),
        "predictions": predictions,
        "truth": labels[held],
        "loss": losses,
    }
