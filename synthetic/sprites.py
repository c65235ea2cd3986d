"""Draws an item of a bin by itself: boxes, books, bags, bottles and tubes with a brand on them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "LABEL_INK",
    "LABEL_PAPER",
    "Box",
    "Colour",
    "Kind",
    "Look",
    "draw_sprite",
    "font",
    "shade",
]

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Kind = Literal["box", "book", "bottle", "bag", "tube"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LABEL_PAPER: Colour = (232, 230, 224)
LABEL_INK: Colour = (38, 36, 40)


@dataclass(frozen=True)
class Look:
    """What a product looks like, the same in every photo it is in."""

    kind: Kind
    width: float
    """Width of the front, in units of the square root of the photo's area; so is the height."""
    height: float
    colour: Colour
    accent: Colour
    word: str
    """The brand printed on the front."""
    design: int
    """Seed of the small print: stripe or panel, place of the sticker, creases."""


def shade(colour: Colour, factor: float) -> Colour:
    """The colour in another light."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=64)
def font(size: int) -> Font:
    """Of what is printed, in pixels."""
    return ImageFont.load_default(size)


def draw_sprite(look: Look, unit: float) -> Image.Image:
    """Return the item standing upright on a transparent ground."""
    rng = np.random.Generator(np.random.PCG64(look.design))
    width, height = max(12, round(look.width * unit)), max(12, round(look.height * unit))
    deep = round(0.2 * min(width, height)) if look.kind == "box" else 0
    sprite = Image.new("RGBA", (width + deep + 2, height + deep + 2))
    draw = ImageDraw.Draw(sprite)
    front = (1, 1 + deep, width, height + deep)
    if look.kind == "box":
        _draw_box(draw, look, front, deep, rng)
    elif look.kind == "book":
        _draw_book(draw, look, front)
    elif look.kind == "bag":
        _draw_bag(draw, look, front, rng)
    else:
        _draw_round(draw, look, front)
    if rng.random() < 0.8:
        _draw_sticker(draw, front, rng)
    return sprite


def _draw_word(draw: ImageDraw.ImageDraw, look: Look, x: float, y: float, room: float) -> None:
    size = max(7, round(1.5 * room / max(4, len(look.word))))
    light = sum(look.accent) > 380
    draw.text((x, y), look.word, LABEL_INK if light else LABEL_PAPER, font(size), anchor="mm")


def _draw_box(
    draw: ImageDraw.ImageDraw,
    look: Look,
    front: Box,
    deep: int,
    rng: np.random.Generator,
) -> None:
    left, top, right, bottom = front
    edge = shade(look.colour, 0.3)
    lid = [(left, top), (left + deep, top - deep), (right + deep, top - deep), (right, top)]
    side = [(right, top), (right + deep, top - deep), (right + deep, bottom - deep)]
    draw.polygon(lid, fill=shade(look.colour, 1.25), outline=edge)
    draw.polygon([*side, (right, bottom)], fill=shade(look.colour, 0.6), outline=edge)
    draw.rectangle(front, fill=look.colour, outline=edge)
    high = bottom - top
    panel = top + rng.uniform(0.08, 0.25) * high
    draw.rectangle((left + 1, panel, right - 1, panel + 0.3 * high), fill=look.accent)
    _draw_word(draw, look, (left + right) / 2, panel + 0.15 * high, 0.85 * (right - left))


def _draw_book(draw: ImageDraw.ImageDraw, look: Look, front: Box) -> None:
    left, top, right, bottom = front
    wide, high = right - left, bottom - top
    draw.rectangle(front, fill=look.colour, outline=shade(look.colour, 0.3))
    draw.rectangle((left, top, left + 0.13 * wide, bottom), fill=shade(look.colour, 0.6))
    draw.rectangle((left + 1, bottom - 0.06 * high, right - 1, bottom - 1), fill=LABEL_PAPER)
    panel = (left + 0.2 * wide, top + 0.1 * high, right - 0.08 * wide, top + 0.38 * high)
    draw.rectangle(panel, fill=look.accent)
    _draw_word(draw, look, left + 0.56 * wide, top + 0.24 * high, 0.68 * wide)


def _draw_bag(
    draw: ImageDraw.ImageDraw,
    look: Look,
    front: Box,
    rng: np.random.Generator,
) -> None:
    left, top, right, bottom = front
    wide, high = right - left, bottom - top
    around = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    # A superellipse is a cushion: a rectangle whose corners have been filled out.
    reach = rng.uniform(0.93, 1.0, around.size)
    xs = np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.45 * reach
    ys = np.sign(np.sin(around)) * np.abs(np.sin(around)) ** 0.45 * reach
    outline = zip((xs + 1) / 2 * wide + left, (ys + 1) / 2 * high + top, strict=True)
    draw.polygon(
        [(float(x), float(y)) for x, y in outline],
        fill=look.colour,
        outline=shade(look.colour, 0.35),
    )
    middle = (left + right) / 2, top + 0.38 * high
    oval = (left + 0.15 * wide, top + 0.2 * high, right - 0.15 * wide, top + 0.55 * high)
    draw.ellipse(oval, fill=look.accent)
    _draw_word(draw, look, *middle, 0.6 * wide)
    for factor in (1.35, 0.7, 1.5, 0.6, 1.4):
        x, y = left + rng.uniform(0.15, 0.85) * wide, top + rng.uniform(0.1, 0.9) * high
        slant, drop = rng.uniform(-0.15, 0.15) * wide, rng.uniform(0.08, 0.2) * high
        draw.line((x, y, x + slant, y + drop), fill=shade(look.colour, factor), width=1)


def _draw_round(draw: ImageDraw.ImageDraw, look: Look, front: Box) -> None:
    """Draw a bottle (shoulders and a cap on top) or a tube (a cap as wide as the body below)."""
    left, top, right, bottom = front
    wide, high = right - left, bottom - top
    edge = shade(look.colour, 0.3)
    if look.kind == "bottle":
        cap: Box = (left + 0.3 * wide, top, right - 0.3 * wide, top + 0.18 * high)
        body: Box = (left, top + 0.15 * high, right, bottom)
    else:
        cap = (left + 0.12 * wide, bottom - 0.16 * high, right - 0.12 * wide, bottom)
        body = (left, top, right, bottom - 0.14 * high)
    draw.rectangle(cap, fill=look.accent, outline=shade(look.accent, 0.4))
    draw.rounded_rectangle(body, radius=0.25 * wide, fill=look.colour, outline=edge)
    tall = body[3] - body[1]
    for at, factor in ((0.1, 0.65), (0.3, 1.5), (0.88, 0.65)):
        x = left + at * wide
        stripe = (x, body[1] + 0.08 * tall, x + 0.05 * wide, body[3] - 0.08 * tall)
        draw.rectangle(stripe, fill=shade(look.colour, factor))
    panel = (left + 1, body[1] + 0.22 * tall, right - 1, body[1] + 0.55 * tall)
    draw.rectangle(panel, fill=look.accent)
    _draw_word(draw, look, (left + right) / 2, body[1] + 0.38 * tall, 0.9 * wide)


def _draw_sticker(draw: ImageDraw.ImageDraw, front: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = front
    wide, high = 0.5 * (right - left), 0.22 * (bottom - top)
    x = left + rng.uniform(0.2, 0.8) * (right - left - wide)
    y = top + rng.uniform(0.62, 0.7) * (bottom - top)
    draw.rectangle((x, y, x + wide, y + high), fill=LABEL_PAPER)
    bars = np.flatnonzero(rng.random(max(1, int(0.84 * wide))) < 0.5)
    for bar in bars.tolist():
        at = x + 0.08 * wide + bar
        draw.line((at, y + 0.15 * high, at, y + 0.6 * high), fill=LABEL_INK)
    draw.line((x + 0.1 * wide, y + 0.8 * high, x + 0.8 * wide, y + 0.8 * high), fill=LABEL_INK)
