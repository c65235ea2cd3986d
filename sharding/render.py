"""Draws one photo of a warehouse bin as JPEG bytes: yellow fabric, items, cords, dull light.

``render_bin(scene)`` is pure: the same scene gives the same bytes. What is in a scene, and how
a product looks, is decided in :mod:`sharding.products`.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

__all__ = ["Band", "Box", "Colour", "Frame", "Item", "Kind", "Light", "Look", "Scene", "render_bin"]

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Pixels = NDArray[np.float32]
Kind = Literal["box", "book", "bottle", "bag", "tube"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER: Colour = (232, 230, 224)
_INK: Colour = (38, 36, 40)


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


@dataclass(frozen=True)
class Item:
    """One item in the bin; ``x`` and ``y`` of its centre are fractions of the photo."""

    look: Look
    x: float
    y: float
    angle: float
    """Degrees, counter-clockwise."""


@dataclass(frozen=True)
class Frame:
    """The opening of the bin between walls and flaps, in fractions of the photo."""

    left: float
    top: float
    right: float
    bottom: float
    back: float
    """Where the floor meets the back wall."""


@dataclass(frozen=True)
class Band:
    """A bundle of thin elastic cords across the front; ``y`` and ``spread`` are fractions."""

    y: float
    spread: float
    tilt: float
    num_cords: int
    opacity: float


@dataclass(frozen=True)
class Light:
    """Brightness, its slope across the photo, and the fall towards the corners."""

    brightness: float
    slope_x: float
    slope_y: float
    vignette: float


@dataclass(frozen=True)
class Scene:
    """Everything there is to know about one photo."""

    width: int
    height: int
    frame: Frame
    items: tuple[Item, ...]
    bands: tuple[Band, ...]
    fabric: Colour
    label: str
    label_colour: Colour
    light: Light
    shift: tuple[float, float]
    """Camera shake in pixels."""
    blur: float
    """Radius in pixels."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""
    quality: int
    seed: int


def render_bin(scene: Scene) -> bytes:
    """Return the photo of `scene` as a baseline 4:2:0 RGB JPEG."""
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    photo = _woven(_empty_bin(scene), rng)
    # What stands lower in the photo stands nearer to the camera, so it is drawn later.
    for item in sorted(scene.items, key=lambda item: item.y):
        _place(photo, item, scene)
    _draw_bands(photo, scene, rng)
    _draw_flaps(photo, scene, rng)
    if scene.blur > 0:
        photo = photo.filter(ImageFilter.BoxBlur(scene.blur))
    buffer = io.BytesIO()
    _exposed(photo, scene, rng).save(
        buffer, "JPEG", quality=scene.quality, subsampling="4:2:0", progressive=False
    )
    return buffer.getvalue()


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=64)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


# The bin


def _empty_bin(scene: Scene) -> Image.Image:
    width, height, frame = scene.width, scene.height, scene.frame
    shift_x, shift_y = scene.shift
    left, right = frame.left * width + shift_x, frame.right * width + shift_x
    back = frame.back * height + shift_y
    inset = 0.035 * width
    photo = Image.new("RGB", (width, height), _shade(scene.fabric, 0.66))
    draw = ImageDraw.Draw(photo)
    draw.rectangle((0, 0, width, back), fill=_shade(scene.fabric, 0.55))
    for edge, inner, border in ((left, left + inset, 0), (right, right - inset, width)):
        corners = [(border, 0), (inner, 0), (inner, back), (edge, height), (border, height)]
        draw.polygon(corners, fill=_shade(scene.fabric, 0.47))
    draw.line((left + inset, back, right - inset, back), fill=_shade(scene.fabric, 0.42), width=2)
    return photo


def _woven(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels: Pixels = np.array(photo, dtype=np.float32)
    thread = rng.standard_normal((photo.height, photo.width + 1), dtype=np.float32)
    pixels += 3 * (thread[:, 1:] + thread[:, :-1])[..., None]
    return _as_image(pixels)


def _draw_bands(photo: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    width, height = photo.size
    for band in scene.bands:
        mask = Image.new("L", photo.size)
        draw = ImageDraw.Draw(mask)
        top, spread = band.y * height + scene.shift[1], band.spread * height
        drop = band.tilt * height
        haze = [(0, top), (width, top + drop), (width, top + drop + spread), (0, top + spread)]
        draw.polygon(haze, fill=round(70 * band.opacity))
        for start in np.linspace(top, top + spread, band.num_cords):
            sag, end = rng.uniform(-1.5, 1.5), drop + rng.uniform(-1, 1)
            points = [(0, start), (width / 2, start + end / 2 + sag), (width, start + end)]
            draw.line(points, fill=round(255 * band.opacity))
        photo.paste((206, 196, 186), mask=mask)


def _draw_flaps(photo: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    width, height = photo.size
    shift_x, shift_y = scene.shift
    draw = ImageDraw.Draw(photo)
    across = np.linspace(0, 1, 9)
    bow = 0.02 * height * 4 * across * (1 - across)
    for edge, border, into in (
        (scene.frame.top * height + shift_y, -1, 1.0),
        (scene.frame.bottom * height + shift_y, height, -1.0),
    ):
        # The bottom flap sags in its middle, the top one hangs.
        line = list(zip((across * width).tolist(), (edge + bow).tolist(), strict=True))
        dark = [(x, y + into * 0.012 * height) for x, y in line]
        draw.polygon([*dark, (width, border), (0, border)], fill=_shade(scene.fabric, 0.35))
        draw.polygon([*line, (width, border), (0, border)], fill=_shade(scene.fabric, 1.0))
        seam = [(x, y - into * 0.015 * height) for x, y in line]
        draw.line(seam, fill=_shade(scene.fabric, 0.85), width=1)
    tall = 0.11 * height**0.5 * width**0.5
    middle = (0.33 + 0.3 * rng.random()) * width + shift_x
    _draw_label(photo, scene, rng, (middle, scene.frame.bottom * height + shift_y + 0.8 * tall))
    # The bin above has its label on the flap that is this bin's upper edge.
    _draw_label(photo, scene, rng, (middle, scene.frame.top * height + shift_y - 0.75 * tall))


def _draw_label(
    photo: Image.Image, scene: Scene, rng: np.random.Generator, centre: tuple[float, float]
) -> None:
    tall = 0.1 * (photo.width * photo.height) ** 0.5
    x, y = centre[0] - 1.3 * tall, centre[1] - tall / 2
    draw = ImageDraw.Draw(photo)
    draw.rectangle((x - 4, y - 3, x + 2.6 * tall + 4, y + tall + 3), fill=(214, 204, 150))
    draw.rectangle((x, y, x + 2.6 * tall, y + tall), fill=scene.label_colour)
    draw.rectangle((x + 0.1 * tall, y + 0.1 * tall, x + 1.4 * tall, y + 0.9 * tall), fill=_PAPER)
    font = _font(max(8, round(0.7 * tall)))
    draw.text((x + 0.58 * tall, y + tall / 2), scene.label, _INK, font, anchor="mm")
    shaft = x + 1.2 * tall
    draw.line((shaft, y + 0.3 * tall, shaft, y + 0.75 * tall), fill=_INK, width=2)
    tip = [(shaft, y + 0.2 * tall), (shaft - 0.1 * tall, y + 0.4 * tall)]
    draw.polygon([*tip, (shaft + 0.1 * tall, y + 0.4 * tall)], fill=_INK)
    modules = rng.integers(0, 2, (11, 11), dtype=np.uint8) * 190 + 30
    side = max(6, round(0.8 * tall))
    code = Image.fromarray(modules).resize((side, side), Image.Resampling.NEAREST)
    photo.paste(code.convert("RGB"), (round(x + 1.6 * tall), round(y + 0.1 * tall)))


# The items


def _place(photo: Image.Image, item: Item, scene: Scene) -> None:
    unit = (scene.width * scene.height) ** 0.5
    upright = _sprite(item.look, unit)
    sprite = upright.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    x = round(item.x * scene.width + scene.shift[0] - sprite.width / 2)
    y = round(item.y * scene.height + scene.shift[1] - sprite.height / 2)
    soft = max(2, round(0.012 * unit))
    shadow = Image.new("L", (sprite.width + 4 * soft, sprite.height + 4 * soft))
    shadow.paste(150, (2 * soft, 2 * soft), sprite.getchannel("A"))
    shadow = shadow.filter(ImageFilter.BoxBlur(soft))
    photo.paste((26, 22, 14), (x - soft, y - soft // 2), shadow)
    photo.paste(sprite, (x, y), sprite)


def _sprite(look: Look, unit: float) -> Image.Image:
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
    draw.text((x, y), look.word, _INK if light else _PAPER, _font(size), anchor="mm")


def _draw_box(
    draw: ImageDraw.ImageDraw,
    look: Look,
    front: Box,
    deep: int,
    rng: np.random.Generator,
) -> None:
    left, top, right, bottom = front
    edge = _shade(look.colour, 0.3)
    lid = [(left, top), (left + deep, top - deep), (right + deep, top - deep), (right, top)]
    side = [(right, top), (right + deep, top - deep), (right + deep, bottom - deep)]
    draw.polygon(lid, fill=_shade(look.colour, 1.25), outline=edge)
    draw.polygon([*side, (right, bottom)], fill=_shade(look.colour, 0.6), outline=edge)
    draw.rectangle(front, fill=look.colour, outline=edge)
    high = bottom - top
    panel = top + rng.uniform(0.08, 0.25) * high
    draw.rectangle((left + 1, panel, right - 1, panel + 0.3 * high), fill=look.accent)
    _draw_word(draw, look, (left + right) / 2, panel + 0.15 * high, 0.85 * (right - left))


def _draw_book(draw: ImageDraw.ImageDraw, look: Look, front: Box) -> None:
    left, top, right, bottom = front
    wide, high = right - left, bottom - top
    draw.rectangle(front, fill=look.colour, outline=_shade(look.colour, 0.3))
    draw.rectangle((left, top, left + 0.13 * wide, bottom), fill=_shade(look.colour, 0.6))
    draw.rectangle((left + 1, bottom - 0.06 * high, right - 1, bottom - 1), fill=_PAPER)
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
        outline=_shade(look.colour, 0.35),
    )
    middle = (left + right) / 2, top + 0.38 * high
    oval = (left + 0.15 * wide, top + 0.2 * high, right - 0.15 * wide, top + 0.55 * high)
    draw.ellipse(oval, fill=look.accent)
    _draw_word(draw, look, *middle, 0.6 * wide)
    for factor in (1.35, 0.7, 1.5, 0.6, 1.4):
        x, y = left + rng.uniform(0.15, 0.85) * wide, top + rng.uniform(0.1, 0.9) * high
        slant, drop = rng.uniform(-0.15, 0.15) * wide, rng.uniform(0.08, 0.2) * high
        draw.line((x, y, x + slant, y + drop), fill=_shade(look.colour, factor), width=1)


def _draw_round(draw: ImageDraw.ImageDraw, look: Look, front: Box) -> None:
    """Draw a bottle (shoulders and a cap on top) or a tube (a cap as wide as the body below)."""
    left, top, right, bottom = front
    wide, high = right - left, bottom - top
    edge = _shade(look.colour, 0.3)
    if look.kind == "bottle":
        cap: Box = (left + 0.3 * wide, top, right - 0.3 * wide, top + 0.18 * high)
        body: Box = (left, top + 0.15 * high, right, bottom)
    else:
        cap = (left + 0.12 * wide, bottom - 0.16 * high, right - 0.12 * wide, bottom)
        body = (left, top, right, bottom - 0.14 * high)
    draw.rectangle(cap, fill=look.accent, outline=_shade(look.accent, 0.4))
    draw.rounded_rectangle(body, radius=0.25 * wide, fill=look.colour, outline=edge)
    tall = body[3] - body[1]
    for at, factor in ((0.1, 0.65), (0.3, 1.5), (0.88, 0.65)):
        x = left + at * wide
        stripe = (x, body[1] + 0.08 * tall, x + 0.05 * wide, body[3] - 0.08 * tall)
        draw.rectangle(stripe, fill=_shade(look.colour, factor))
    panel = (left + 1, body[1] + 0.22 * tall, right - 1, body[1] + 0.55 * tall)
    draw.rectangle(panel, fill=look.accent)
    _draw_word(draw, look, (left + right) / 2, body[1] + 0.38 * tall, 0.9 * wide)


def _draw_sticker(draw: ImageDraw.ImageDraw, front: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = front
    wide, high = 0.5 * (right - left), 0.22 * (bottom - top)
    x = left + rng.uniform(0.2, 0.8) * (right - left - wide)
    y = top + rng.uniform(0.62, 0.7) * (bottom - top)
    draw.rectangle((x, y, x + wide, y + high), fill=_PAPER)
    bars = np.flatnonzero(rng.random(max(1, int(0.84 * wide))) < 0.5)
    for bar in bars.tolist():
        at = x + 0.08 * wide + bar
        draw.line((at, y + 0.15 * high, at, y + 0.6 * high), fill=_INK)
    draw.line((x + 0.1 * wide, y + 0.8 * high, x + 0.8 * wide, y + 0.8 * high), fill=_INK)


# The camera


def _exposed(photo: Image.Image, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Return the photo under the scene's light, as a dull and noisy sensor sees it."""
    height, width, light = scene.height, scene.width, scene.light
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    field = light.brightness * (1 + light.slope_x * x + light.slope_y * y)
    field *= 1 - light.vignette / 2 * (x * x + y * y)
    faded = ImageEnhance.Color(photo).enhance(0.85)
    pixels: Pixels = np.array(faded, dtype=np.float32)
    pixels *= field[..., None]
    pixels += 14
    # Neighbours of one grain field serve as the colours' own noise: drawing it takes the time.
    grain: Pixels = scene.noise * rng.standard_normal((height, width + 3), dtype=np.float32)
    for channel in range(3):
        pixels[..., channel] += grain[:, :width]
        pixels[..., channel] += 0.4 * grain[:, channel + 1 : channel + 1 + width]
    return _as_image(pixels)


def _as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
