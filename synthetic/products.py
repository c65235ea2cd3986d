"""Invents what a bin holds and where it lies: products, their looks, the scene, the metadata.

A product has a name, an ASIN, sizes and a look of its own. A bin keeps its products, and keeps them
in place, from one photo to the next, but for what was picked or stowed in between.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, radians, sin
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from synthetic.render import Band, CameraFrame, PlacedItem, Scene
    from synthetic.sprites import Box, Colour, Kind, Look

__all__ = ["Bin", "Product", "bin_metadata", "invent_bin", "invent_product", "photographed"]

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_BRANDS = (
    "Alder", "Brisk", "Calyx", "Dovetail", "Ember", "Fathom", "Glint", "Harrow", "Ionic", "Juniper",
    "Kestrel", "Lumen", "Marlow", "Nimbus", "Orchid", "Pebble", "Quill", "Rowan", "Sable", "Tindra",
    "Umbra", "Velt", "Wicket", "Xylo", "Yarrow", "Zephyr",
)  # fmt: skip
_QUALITIES = (
    "Classic", "Compact", "Deluxe", "Essential", "Everyday", "Extra Strong", "Gentle", "Heavy Duty",
    "Natural", "Original", "Portable", "Premium", "Professional", "Slim", "Soft", "Ultra",
)  # fmt: skip
_THINGS: "dict[Kind, tuple[str, ...]]" = {
    "box": (
        "Oil Filter", "LED Bulb", "Phone Case", "Desk Lamp", "Coffee Pods", "Puzzle", "Card Game",
        "USB Charger", "Door Hinge Kit", "Tea Bags", "Crayons", "Light Switch",
    ),
    "book": (
        "Cookbook", "Field Guide", "Sketchbook", "Road Atlas", "Planner", "Workbook", "Anthology",
        "Novel", "Dictionary", "Picture Book",
    ),
    "bottle": (
        "Shampoo", "Vitamin C Tablets", "Dish Soap", "Fish Oil Softgels", "Body Lotion",
        "Olive Oil", "Wood Polish", "Hot Sauce", "Conditioner",
    ),
    "bag": (
        "Dog Treats", "T-Shirt", "Trail Mix", "Socks", "Rice Crackers", "Bird Seed", "Scarf",
        "Ground Coffee", "Craft Beads",
    ),
    "tube": (
        "Hand Cream", "Toothpaste", "Sunscreen", "Hair Gel", "Wood Glue", "Face Wash",
        "Acrylic Paint",
    ),
}  # fmt: skip
_COLOURS: "dict[str, Colour]" = {
    "Red": (190, 32, 40), "Crimson": (150, 20, 60), "Blue": (30, 80, 180), "Navy": (28, 40, 100),
    "Sky Blue": (90, 165, 215), "Green": (30, 130, 70), "Teal": (20, 130, 140),
    "Purple": (110, 50, 150), "Pink": (225, 95, 150), "Orange": (225, 95, 30),
    "White": (228, 228, 224), "Black": (40, 40, 46), "Silver": (165, 170, 178),
    "Kraft": (128, 84, 52), "Brown": (92, 60, 42),
}  # fmt: skip
_SHAPES: "dict[Kind, tuple[float, float]]" = {
    "box": (0.75, 1.35), "book": (1.25, 1.5), "bottle": (1.6, 2.1), "bag": (1.0, 1.4),
    "tube": (1.7, 2.3),
}  # fmt: skip
"""Height over width of the front, from and to."""

_AREA = 0.05
"""Of an average front, as a share of the photo."""
_INCHES = 36.0
"""A photo's side of one unit is a bin about this wide."""


@dataclass(frozen=True)
class Product:
    """A product as the metadata has it, and its look."""

    key: str
    """Under which the metadata lists it; nearly always the ASIN."""
    asin: str
    name: str | None
    normalized_name: str | None
    length: float | None
    width: float | None
    height: float | None
    weight: float | None
    look: "Look"


@dataclass(frozen=True)
class Bin:
    """A bin over its photos, before and after a pick."""

    scene: "Scene"
    """With every item that is ever in it."""
    products: tuple[Product, ...]
    """Of each item of the scene."""
    present: tuple[tuple[int, ...], ...]
    """Per photo, which of the items are there."""


def invent_product(rng: "np.random.Generator", scale: float) -> Product:
    """Return a random product; `scale` makes its look larger or smaller than the average."""
    from synthetic.sprites import Look

    kinds = tuple(_THINGS)
    kind = kinds[rng.choice(len(kinds), p=(0.36, 0.18, 0.16, 0.18, 0.12))]
    names = tuple(_COLOURS)
    first, second = rng.choice(len(names), 2, replace=False)
    shape = rng.uniform(*_SHAPES[kind])
    side = (_AREA * rng.uniform(0.75, 1.25) / shape) ** 0.5 * scale
    brand = _BRANDS[rng.integers(len(_BRANDS))]
    look = Look(
        kind=kind,
        width=side,
        height=side * shape,
        colour=_COLOURS[names[first]],
        accent=_COLOURS[names[second]],
        word=brand,
        design=int(rng.integers(2**32)),
    )
    thing = _THINGS[kind][rng.integers(len(_THINGS[kind]))]
    title = f"{brand} {_QUALITIES[rng.integers(len(_QUALITIES))]} {thing}, {names[first]}"
    pack = f"(Pack of {rng.integers(2, 13)})" if rng.random() < 0.2 else ""
    asin = "B0" + _code(rng, 8)
    sized, weighed, named = rng.random() >= 0.005, rng.random() >= 0.02, rng.random() >= 0.005
    return Product(
        # The warehouse's own codes start with X00.
        key="X00" + _code(rng, 7) if rng.random() < 0.003 else asin,
        asin=asin,
        name=f"{title} {pack}".strip() if named else None,
        normalized_name=f"{pack} {title}".strip() if named else None,
        length=round(look.height * _INCHES, 2) if sized else None,
        width=round(look.width * _INCHES, 2) if sized else None,
        height=round(rng.uniform(0.4, 1.0) * look.width * _INCHES, 2) if sized else None,
        weight=round(rng.lognormal(-0.7, 0.9), 2) if weighed and sized else None,
        look=look,
    )


def invent_bin(counts: Sequence[int], rng: "np.random.Generator") -> Bin:
    """Return a random bin of which photo after photo shows `counts` items."""
    present = _present(counts, rng)
    num_items = max((index for items in present for index in items), default=-1) + 1
    # A bin that holds many items holds smaller ones, or they would not fit.
    scale = rng.uniform(0.94, 1.06) * min(1.0, (7 / max(1, *counts)) ** 0.5)
    products: list[Product] = []
    for _ in range(num_items):
        if products and rng.random() < 0.35:
            products.append(products[rng.integers(len(products))])
        else:
            products.append(invent_product(rng, scale))
    return Bin(_scene(products, rng), tuple(products), present)


def photographed(shelf: Bin, state: int, rng: "np.random.Generator") -> "Scene":
    """Return what the bin's photo number `state` shows: camera and light are never the same."""
    scene = shelf.scene

    def nudged(item: "PlacedItem") -> "PlacedItem":
        return replace(
            item,
            x=item.x + rng.normal(0, 1.5) / scene.width,
            y=item.y + rng.normal(0, 1.5) / scene.height,
            angle=item.angle + rng.normal(0, 1),
        )

    return replace(
        scene,
        items=tuple(nudged(scene.items[index]) for index in shelf.present[state]),
        light=replace(scene.light, brightness=scene.light.brightness * rng.uniform(0.93, 1.07)),
        shift=(rng.uniform(-4, 4), rng.uniform(-4, 4)),
        seed=int(rng.integers(2**32)),
    )


def bin_metadata(
    quantities: Mapping[Product, int], expected: int, *, image_fname: str | None = None
) -> bytes:
    """Return ABID's metadata JSON of a bin; `image_fname` is the unpadded series' extra key."""
    entries = {
        product.key: {
            "asin": product.asin,
            "height": _measure(product.height, "IN"),
            "length": _measure(product.length, "IN"),
            "name": product.name,
            "normalizedName": product.normalized_name,
            "quantity": quantity,
            "weight": _measure(product.weight, "pounds"),
            "width": _measure(product.width, "IN"),
        }
        for product, quantity in sorted(quantities.items(), key=lambda pair: pair[0].key)
    }
    document: dict[str, object] = {"BIN_FCSKU_DATA": entries, "EXPECTED_QUANTITY": expected}
    if image_fname is not None:
        document["image_fname"] = image_fname
    return json.dumps(document, indent=4).encode()


def _code(rng: "np.random.Generator", length: int) -> str:
    return "".join(_ALPHABET[i] for i in rng.integers(len(_ALPHABET), size=length))


def _measure(value: float | None, unit: str) -> dict[str, str | float] | None:
    return None if value is None else {"unit": unit, "value": value}


def _present(counts: Sequence[int], rng: "np.random.Generator") -> tuple[tuple[int, ...], ...]:
    present = list(range(counts[0]))
    states = [tuple(present)]
    stowed = counts[0]
    for count in counts[1:]:
        num_out = max(len(present) - count, 1 if count == len(present) else 0)
        for _ in range(min(num_out, len(present))):
            present.pop(int(rng.integers(len(present))))
        while len(present) < count:
            present.append(stowed)
            stowed += 1
        states.append(tuple(present))
    return tuple(states)


def _scene(products: Sequence[Product], rng: "np.random.Generator") -> "Scene":
    from synthetic.render import Light, Scene

    width = int(min(785, max(315, rng.lognormal(6.14, 0.21))))
    # Most bins are low and wide; the rest are a shelf's tall ones.
    aspect = rng.lognormal(-0.34, 0.09) if rng.random() < 0.7 else rng.uniform(1.0, 1.6)
    height = int(min(1069, max(234, aspect * width)))
    frame = _frame(rng)
    faded = rng.uniform(0.94, 1.06)
    tan = int(rng.integers(-6, 7))
    label_colours = ((40, 50, 80), (120, 160, 205), (196, 62, 60), (228, 226, 220), (222, 140, 70))
    return Scene(
        width=width,
        height=height,
        frame=frame,
        items=_arranged(products, frame, width, height, rng),
        bands=_bands(frame, rng),
        fabric=(round(222 * faded), round(188 * faded) + tan, round(104 * faded) - tan),
        label=f"{rng.integers(1, 5)}{'ABCDEFGHIJ'[rng.integers(10)]}",
        label_colour=label_colours[rng.integers(len(label_colours))],
        light=Light(
            brightness=rng.uniform(0.68, 0.92),
            slope_x=rng.uniform(-0.15, 0.15),
            slope_y=rng.uniform(-0.1, 0.2),
            vignette=rng.uniform(0.1, 0.3),
        ),
        shift=(0.0, 0.0),
        # A few photos of ABID are badly out of focus.
        blur=rng.uniform(1.5, 2.5) if rng.random() < 0.08 else rng.uniform(0.3, 0.8),
        noise=rng.uniform(3.0, 6.0),
        # ABID's largest photos are compressed harder, none of them has 200 kB.
        quality=int(rng.integers(87, 93)) - (4 if width * height > 500_000 else 0),
        seed=int(rng.integers(2**32)),
    )


def _frame(rng: "np.random.Generator") -> "CameraFrame":
    from synthetic.render import CameraFrame

    top = rng.uniform(0.04, 0.1)
    return CameraFrame(
        left=rng.uniform(0.0, 0.04),
        top=top,
        right=rng.uniform(0.96, 1.0),
        bottom=rng.uniform(0.86, 0.93),
        back=top + rng.uniform(0.12, 0.28),
    )


def _bands(frame: "CameraFrame", rng: "np.random.Generator") -> "tuple[Band, ...]":
    from synthetic.render import Band

    deep = frame.bottom - frame.top
    places = ((0.03, 0.2), (0.52, 0.7)) if rng.random() < 0.6 else ((0.45, 0.7),)
    return tuple(
        Band(
            y=frame.top + deep * rng.uniform(*place),
            spread=deep * rng.uniform(0.17, 0.3),
            tilt=rng.uniform(-0.02, 0.02),
            num_cords=int(rng.integers(12, 20)),
            opacity=rng.uniform(0.35, 0.6),
        )
        for place in places
    )


def _arranged(
    products: Sequence[Product],
    frame: "CameraFrame",
    width: int,
    height: int,
    rng: "np.random.Generator",
) -> "tuple[PlacedItem, ...]":
    """Return the items at random places, mostly apart, now and then one partly behind another."""
    from synthetic.render import PlacedItem

    unit = (width * height) ** 0.5
    items: list[PlacedItem] = []
    boxes: list[Box] = []
    for product in products:
        look = product.look
        angle = rng.normal(0, 9) + (90 if rng.random() < 0.2 else 0)
        turn_cos, turn_sin = abs(cos(radians(angle))), abs(sin(radians(angle)))
        wide = (look.width * turn_cos + look.height * turn_sin) * unit / width
        high = (look.width * turn_sin + look.height * turn_cos) * unit / height
        # Walls hide nothing, the flaps a little.
        x_from, x_to = _span(frame.left + 0.02, frame.right - 0.02, wide)
        y_from, y_to = _span(frame.top - 0.1 * high, frame.bottom + 0.12 * high, high)
        allowed = rng.uniform(0.1, 0.35) if rng.random() < 0.4 else 0.04
        best, least = (0.0, 0.0, 0.0, 0.0), float("inf")
        for _ in range(40):
            x, y = rng.uniform(x_from, x_to), rng.uniform(y_from, y_to)
            box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            hidden = max((_overlap(box, other) for other in boxes), default=0.0)
            if hidden < least:
                best, least = box, hidden
            if hidden <= allowed:
                best = box
                break
        boxes.append(best)
        items.append(PlacedItem(look, (best[0] + best[2]) / 2, (best[1] + best[3]) / 2, angle))
    return tuple(items)


def _span(low: float, high: float, size: float) -> tuple[float, float]:
    """Return where the centre of something of this size may be between `low` and `high`."""
    if size >= high - low:
        return (low + high) / 2, (low + high) / 2
    return low + size / 2, high - size / 2


def _overlap(box: "Box", other: "Box") -> float:
    """Return the share of the smaller of two boxes that the other covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return wide * high / min(areas)
