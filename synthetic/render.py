"""Draws one photo of a warehouse bin as JPEG bytes: yellow fabric, items, cords, dull light.

``render_bin(scene)`` is pure: the same scene gives the same bytes. What is in a scene, and how
a product looks, is decided in :mod:`synthetic.products`.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from synthetic.sprites import LABEL_INK, LABEL_PAPER, Colour, Look, draw_sprite, font, shade

__all__ = ["Band", "CameraFrame", "Light", "PlacedItem", "Scene", "render_bin"]

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class PlacedItem:
    """One item in the bin; ``x`` and ``y`` of its centre are fractions of the photo."""

    look: Look
    x: float
    y: float
    angle: float
    """Degrees, counter-clockwise."""


@dataclass(frozen=True)
class CameraFrame:
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
    frame: CameraFrame
    items: tuple[PlacedItem, ...]
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


# The bin


def _empty_bin(scene: Scene) -> Image.Image:
    width, height, frame = scene.width, scene.height, scene.frame
    shift_x, shift_y = scene.shift
    left, right = frame.left * width + shift_x, frame.right * width + shift_x
    back = frame.back * height + shift_y
    inset = 0.035 * width
    photo = Image.new("RGB", (width, height), shade(scene.fabric, 0.66))
    draw = ImageDraw.Draw(photo)
    draw.rectangle((0, 0, width, back), fill=shade(scene.fabric, 0.55))
    for edge, inner, border in ((left, left + inset, 0), (right, right - inset, width)):
        corners = [(border, 0), (inner, 0), (inner, back), (edge, height), (border, height)]
        draw.polygon(corners, fill=shade(scene.fabric, 0.47))
    draw.line((left + inset, back, right - inset, back), fill=shade(scene.fabric, 0.42), width=2)
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
        draw.polygon([*dark, (width, border), (0, border)], fill=shade(scene.fabric, 0.35))
        draw.polygon([*line, (width, border), (0, border)], fill=shade(scene.fabric, 1.0))
        seam = [(x, y - into * 0.015 * height) for x, y in line]
        draw.line(seam, fill=shade(scene.fabric, 0.85), width=1)
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
    draw.rectangle(
        (x + 0.1 * tall, y + 0.1 * tall, x + 1.4 * tall, y + 0.9 * tall), fill=LABEL_PAPER
    )
    letters = font(max(8, round(0.7 * tall)))
    draw.text((x + 0.58 * tall, y + tall / 2), scene.label, LABEL_INK, letters, anchor="mm")
    shaft = x + 1.2 * tall
    draw.line((shaft, y + 0.3 * tall, shaft, y + 0.75 * tall), fill=LABEL_INK, width=2)
    tip = [(shaft, y + 0.2 * tall), (shaft - 0.1 * tall, y + 0.4 * tall)]
    draw.polygon([*tip, (shaft + 0.1 * tall, y + 0.4 * tall)], fill=LABEL_INK)
    modules = rng.integers(0, 2, (11, 11), dtype=np.uint8) * 190 + 30
    side = max(6, round(0.8 * tall))
    code = Image.fromarray(modules).resize((side, side), Image.Resampling.NEAREST)
    photo.paste(code.convert("RGB"), (round(x + 1.6 * tall), round(y + 0.1 * tall)))


# The items


def _place(photo: Image.Image, item: PlacedItem, scene: Scene) -> None:
    unit = (scene.width * scene.height) ** 0.5
    upright = draw_sprite(item.look, unit)
    sprite = upright.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    x = round(item.x * scene.width + scene.shift[0] - sprite.width / 2)
    y = round(item.y * scene.height + scene.shift[1] - sprite.height / 2)
    soft = max(2, round(0.012 * unit))
    shadow = Image.new("L", (sprite.width + 4 * soft, sprite.height + 4 * soft))
    shadow.paste(150, (2 * soft, 2 * soft), sprite.getchannel("A"))
    shadow = shadow.filter(ImageFilter.BoxBlur(soft))
    photo.paste((26, 22, 14), (x - soft, y - soft // 2), shadow)
    photo.paste(sprite, (x, y), sprite)


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
