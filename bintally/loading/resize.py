"""One pass from a decoded photo to the model's input: antialiased resize, flip, normalise; where
it is augmented, of a part of the photo, and with colours mixed.

Beside PyTorch's own resize, which is as fast, it saves three passes over the photo and their
memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bintally.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["augment_into", "resize_into"]

_compiled = compiled(fastmath=True)
_float = np.float32
# An unsigned index cannot count from the end, which would have to be asked for at every access.
_index = np.uintp


@_compiled
def resize_into(
    photo: NDArray[np.uint8],
    flip: bool,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint8],
) -> None:
    """Writes `scale` × value + `shift` for a photo stretched to `out`'s size, mirrored if asked.

    `photo` is (height, width × 3), `out` (size, size × 3), `scale` and `shift` (4,), of which the
    last are not used. What is written as uint8 is cut off, not rounded. The filter is a triangle as
    wide as the reduction asks for, as Pillow's and PyTorch's antialiased bilinear one, without
    their rounding in between.
    """
    size = out.shape[0]
    height, width = photo.shape[0], photo.shape[1] // 3
    if height == size and width == size:
        for y in range(size):
            _normalise(photo[y], flip, scale, shift, out[y])
        return
    # One float more than a row has, for four are read at a time.
    row = np.zeros(3 * width + 1, np.float32)
    first_row, row_weights = _filter(height, 0.0, float(height), size, False)
    first_column, column_weights = _filter(width, 0.0, float(width), size, False)
    for y in range(size):
        _mix_rows(photo, first_row[y], row_weights[y], row)
        _mix_columns(row, first_column, column_weights, flip, scale, shift, out[y])


@_compiled
def augment_into(
    photo: NDArray[np.uint8],
    box: NDArray[np.float32],
    flip: bool,
    colours: NDArray[np.float32],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint8],
) -> None:
    """The same for the part of a photo that is in a box, beyond whose edge the outermost pixels are
    repeated, and with its colours mixed before they are normalised.

    `box` is (left, top, right, bottom) in shares of width and height, `colours` (3, 4) what comes
    of red, green, blue and 1, cut off at 0 and 255.
    """
    size = out.shape[0]
    height, width = photo.shape[0], photo.shape[1] // 3
    first_row, row_weights = _filter(height, box[1] * height, box[3] * height, size, True)
    first_column, column_weights = _filter(width, box[0] * width, box[2] * width, size, True)
    begin = first_column.min()
    end = first_column.max() + _index(column_weights.shape[1])
    seen, first_column = photo[:, 3 * begin : 3 * end], first_column - begin
    row = np.zeros(seen.shape[1] + 1, np.float32)
    line = np.empty(3 * size, np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    # Colours are mixed and normalised at once.
    mix = scale[:3].copy().reshape(3, 1) * colours
    mix[:, 3] += shift[:3]
    white = _float(255) * scale + shift
    for y in range(size):
        _mix_rows(seen, first_row[y], row_weights[y], row)
        _mix_columns(row, first_column, column_weights, flip, one, zero, line)
        _mix_colours(line, mix, shift, white, out[y])


@_compiled
def _filter(
    length: int, begin: float, end: float, size: int, repeat: bool
) -> tuple[NDArray[np.uintp], NDArray[np.float32]]:
    """For each of `size` places from `begin` to `end`, the first of `length` that it is made of,
    and their weights. What lies beyond them is left out, or the outermost are repeated."""
    step = (end - begin) / size
    radius = max(step, 1.0)
    taps = min(length, int(np.ceil(radius)) * 2 + 1)
    first = np.empty(size, np.uintp)
    weights = np.zeros((size, taps), np.float32)
    for place in range(size):
        centre = begin + (place + 0.5) * step
        low = int(np.floor(centre - radius + 0.5))
        high = int(np.floor(centre + radius + 0.5))
        # Where there are fewer, those before weigh nothing, so that all have as many.
        start = min(max(0, low), length - taps)
        first[place] = start
        total = 0.0
        for at in range(max(0, low), min(length, high)):
            weight = max(0.0, 1.0 - abs((at + 0.5 - centre) / radius))
            weights[place, at - start] = weight
            total += weight
        if repeat:
            for at in range(low, high):
                if not 0 <= at < length:
                    weight = max(0.0, 1.0 - abs((at + 0.5 - centre) / radius))
                    weights[place, min(max(0, at), length - 1) - start] += weight
                    total += weight
        for tap in range(taps):
            weights[place, tap] /= total
    # A tap that nobody uses costs as much as one that is used.
    used = 1
    for place in range(size):
        for tap in range(used, taps):
            if weights[place, tap] != 0:
                used = tap + 1
    return first, weights[:, :used].copy()


@_compiled
def _mix_rows(
    photo: NDArray[np.uint8], first: int, weights: NDArray[np.float32], row: NDArray[np.float32]
) -> None:
    """Adds up some rows of a photo."""
    length = photo.shape[1]
    one, w1 = photo[first], weights[0]
    if len(weights) == 1:
        for i in range(length):
            row[i] = w1 * _float(one[i])
        return
    two, w2 = photo[first + _index(1)], weights[1]
    if len(weights) == 2:
        for i in range(length):
            row[i] = w1 * _float(one[i]) + w2 * _float(two[i])
        return
    three, w3 = photo[first + _index(2)], weights[2]
    for i in range(length):
        row[i] = w1 * _float(one[i]) + w2 * _float(two[i]) + w3 * _float(three[i])
    for tap in range(3, len(weights)):
        w1 = weights[tap]
        if w1 != 0:
            one = photo[first + _index(tap)]
            for i in range(length):
                row[i] += w1 * _float(one[i])


@_compiled
def _mix_columns(
    row: NDArray[np.float32],
    first: NDArray[np.uintp],
    weights: NDArray[np.float32],
    flip: bool,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint8],
) -> None:
    """Makes a row of the output. Four values at a time fit a vector register; a pixel's fourth is
    its neighbour's first, which then overwrites it."""
    size, taps = _index(first.shape[0]), _index(weights.shape[1])
    one, two, three, last = _index(1), _index(2), _index(3), size - _index(1)
    for x in range(size):
        source = last - x if flip else x
        i = three * first[source]
        a = b = c = d = _float(0)
        for tap in range(taps):
            weight = weights[source, tap]
            a += weight * row[i]
            b += weight * row[i + one]
            c += weight * row[i + two]
            d += weight * row[i + three]
            i += three
        o = three * x
        out[o] = a * scale[0] + shift[0]
        out[o + one] = b * scale[1] + shift[1]
        out[o + two] = c * scale[2] + shift[2]
        if x != last:
            out[o + three] = d * scale[3] + shift[3]


@_compiled
def _mix_colours(
    line: NDArray[np.float32],
    mix: NDArray[np.float32],
    black: NDArray[np.float32],
    white: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint8],
) -> None:
    """Makes a row of the output of one that has its size, cut off at black and white."""
    (r0, r1, r2, r3), (g0, g1, g2, g3), (b0, b1, b2, b3) = mix[0], mix[1], mix[2]
    (black_r, black_g, black_b, _), (white_r, white_g, white_b, _) = black, white
    one, two, three = _index(1), _index(2), _index(3)
    for x in range(_index(out.shape[0] // 3)):
        i = three * x
        r, g, b = line[i], line[i + one], line[i + two]
        out[i] = min(max(r0 * r + r1 * g + r2 * b + r3, black_r), white_r)
        out[i + one] = min(max(g0 * r + g1 * g + g2 * b + g3, black_g), white_g)
        out[i + two] = min(max(b0 * r + b1 * g + b2 * b + b3, black_b), white_b)


@_compiled
def _normalise(
    row: NDArray[np.uint8],
    flip: bool,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint8],
) -> None:
    """A row that has its size already."""
    size = _index(out.shape[0] // 3)
    one, two, three, last = _index(1), _index(2), _index(3), size - _index(1)
    for x in range(size):
        i = three * (last - x if flip else x)
        o = three * x
        out[o] = _float(row[i]) * scale[0] + shift[0]
        out[o + one] = _float(row[i + one]) * scale[1] + shift[1]
        out[o + two] = _float(row[i + two]) * scale[2] + shift[2]
