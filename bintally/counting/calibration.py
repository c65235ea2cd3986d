"""How far a model's probabilities may be believed: measured, and mended by one number. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["expected_calibration_error", "fit_temperature"]

BINS = 15
COLDEST, HOTTEST = 0.1, 10.0
"""Bounds of a temperature: for photos of which a model is always right, colder is always better."""
ROWS = 4096
"""Photos at a time, so that a thousand classes of many of them need no second copy in memory."""


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature T from 0.1 to 10 at which softmax(logits / T) makes the labels most probable
    (Guo et al., On Calibration of Modern Neural Networks, ICML 2017), to six decimals.

    `logits` are (photos, classes), `labels` (photos,) class indices. 1 where there is nothing to
    learn from: no photo, logits that are no numbers, or that are all the same.
    """
    import numpy as np

    if not len(labels) or not np.isfinite(logits).all():
        return 1.0
    # The negative log-likelihood is convex in 1 / T, so its slope tells on which side the best is.
    low, high, scale = 1 / HOTTEST, 1 / COLDEST, 1.0
    if _derivatives(logits, labels, low)[0] > 0:
        return HOTTEST
    if _derivatives(logits, labels, high)[0] < 0:
        return COLDEST
    while True:
        slope, curvature = _derivatives(logits, labels, scale)
        if slope == 0:
            break
        low, high = (low, scale) if slope > 0 else (scale, high)
        # Newton's step, or the middle on a logarithmic scale where it leads astray.
        following = scale - slope / curvature if curvature > 0 else 0.0
        if not low < following < high:
            following = math.sqrt(low * high)
        if abs(following - scale) <= 1e-9 * scale:
            break
        scale = following
    # Rounded, lest one processor's last bit make another file than another's.
    return round(1 / scale, 6)


def _derivatives(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], scale: float
) -> tuple[float, float]:
    """First and second derivative of the negative log-likelihood by 1 / T, at `scale`."""
    import numpy as np

    slope = curvature = 0.0
    for begin in range(0, len(labels), ROWS):
        own = labels[begin : begin + ROWS]
        values = logits[begin : begin + ROWS].astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        shares = np.exp(scale * values)
        shares /= shares.sum(axis=1, keepdims=True)
        means = (shares * values).sum(axis=1)
        slope += float((means - values[np.arange(len(own)), own]).sum())
        curvature += float((shares * (values - means[:, None]) ** 2).sum())
    return slope, curvature


def expected_calibration_error(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]
) -> float | None:
    """How far sureness and rightness are apart, from 0 to 1; None where there are no photos.

    Photos are put into 15 bins of equal width by the probability of their most probable class; the
    mean of it and the share of photos of which it is the true one differ in each, and the mean of
    these differences, weighted with the photos, is the error.
    """
    import numpy as np

    if not len(labels):
        return None
    sure = np.nan_to_num(probabilities.max(axis=1).astype(np.float64))
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(bins, right - sure)).sum() / len(labels))
