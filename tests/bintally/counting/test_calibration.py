"""One temperature, and how far sureness and rightness are apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bintally.counting.calibration import expected_calibration_error, fit_temperature

Drawn = tuple[NDArray[np.float32], NDArray[np.int64]]


def calibrated(samples: int, seed: int, spread: float = 1.5) -> Drawn:
    """Logits, and labels that are drawn with just the probabilities that they say."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, spread, (samples, 6)).astype(np.float32)
    return logits, (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    values = logits.astype(np.float64) / temperature
    shares: NDArray[np.float64] = np.exp(values - np.logaddexp.reduce(values, axis=1)[:, None])
    return shares


def loss(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    values = logits.astype(np.float64) / temperature
    own = values[np.arange(len(labels)), labels]
    return float((np.logaddexp.reduce(values, axis=1) - own).mean())


def test_logits_that_are_three_times_too_large_are_divided_by_three() -> None:
    logits, labels = calibrated(4000, seed=1)
    too_sure = logits * 3
    temperature = fit_temperature(too_sure, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    before = expected_calibration_error(softmax(too_sure), labels)
    after = expected_calibration_error(softmax(too_sure, temperature), labels)
    assert before is not None
    assert after is not None
    assert before > 0.15
    assert after < 0.03


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.05, 20))
def test_no_other_temperature_makes_the_labels_more_probable(
    seed: int, samples: int, scale: float
) -> None:
    logits, labels = calibrated(samples, seed)
    logits *= np.float32(scale)
    temperature = fit_temperature(logits, labels)
    assert 0.1 <= temperature <= 10
    least = loss(logits, labels, temperature)
    for other in np.geomspace(0.1, 10, 41):
        assert least <= loss(logits, labels, float(other)) + 1e-6


def test_neither_order_nor_number_of_photos_changes_it() -> None:
    logits, labels = calibrated(10_000, seed=2)
    temperature = fit_temperature(logits, labels)
    assert temperature == fit_temperature(logits[::-1].copy(), labels[::-1].copy())
    twice = fit_temperature(np.concatenate([logits] * 2), np.concatenate([labels] * 2))
    assert temperature == twice


def test_where_there_is_nothing_to_learn_from_the_logits_stay_as_they_are() -> None:
    none, one = np.zeros((0, 6), np.float32), np.zeros((1, 6), np.float32)
    assert fit_temperature(none, np.zeros(0, np.int64)) == 1
    assert fit_temperature(one, np.array([3])) == 1
    assert fit_temperature(one * np.nan, np.array([3])) == 1
    assert fit_temperature(np.full((2, 1), 7, np.float32), np.array([0, 0])) == 1


def test_a_model_that_is_always_right_or_wrong_stays_within_bounds() -> None:
    sure = np.eye(6, dtype=np.float32)
    assert fit_temperature(sure, np.arange(6)) == 0.1
    assert fit_temperature(sure, (np.arange(6) + 1) % 6) == 10


@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
def test_the_error_is_what_a_loop_over_bins_gives(seed: int, samples: int) -> None:
    logits, labels = calibrated(samples, seed, spread=3)
    shares = softmax(logits)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    wanted = 0.0
    for number in range(15):
        last = number == 14
        inside = (sure >= number / 15) & ((sure < (number + 1) / 15) | last)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert expected_calibration_error(shares, labels) == pytest.approx(wanted)
    assert expected_calibration_error(shares[:0], labels[:0]) is None
