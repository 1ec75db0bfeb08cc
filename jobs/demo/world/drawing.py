"""Paints scenes: 112×112 pixels, so large that every shape survives a resize to 56×56."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

from PIL import Image, ImageDraw

from .dice import Dice
from .scenes import Colour, Scene

SIZE = 112
FINER = 2  # painted larger and shrunk, so that edges are smooth
MARGIN = 3.0
GAP = 5.0  # least distance between two objects
DIVIDE = 12.0  # least distance between two groups
LEAST_RADIUS = 10.0
MOST_RADIUS = 17.0
JITTER = 12
TRIES = 40

Box = tuple[float, float, float, float]


class Placed(NamedTuple):
    """Where an object stands: the circle that holds it."""

    x: float
    y: float
    radius: float


def draw(dice: Dice, scene: Scene) -> tuple[bytes, list[list[Placed]]]:
    """The scene as PNG bytes, and where the objects of each group stand."""
    image = _background(dice).resize((SIZE * FINER, SIZE * FINER), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    places = place(dice, scene)
    for group, circles in zip(scene.groups, places):
        fill = _near(dice, group.colour)
        for circle in circles:
            _paint(pen, group.shape.en, circle, fill)
    buffer = io.BytesIO()
    image.reduce(FINER).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue(), places


def place(dice: Dice, scene: Scene) -> list[list[Placed]]:
    """A circle for every object: inside its group's part of the image, and apart from all others."""
    return [_scatter(dice, group.number, box) for group, box in zip(scene.groups, _boxes(dice, scene))]


def _boxes(dice: Dice, scene: Scene) -> list[Box]:
    """The part of the image each group has to itself."""
    low, high = MARGIN, SIZE - MARGIN
    if scene.relation is None:
        return [(low, low, high, high)]
    middle = SIZE / 2 + (dice.random() - 0.5) * 6
    near, far = middle - DIVIDE / 2, middle + DIVIDE / 2
    if scene.relation == "left":
        return [(low, low, near, high), (far, low, high, high)]
    return [(low, low, high, near), (low, far, high, high)]


def _scatter(dice: Dice, count: int, box: Box) -> list[Placed]:
    """Circles of about one size thrown into the box until none touch; smaller each time they do not fit."""
    left, top, right, bottom = box
    most = min(MOST_RADIUS, (right - left) / 2 - 1, (bottom - top) / 2 - 1)
    radius = LEAST_RADIUS + dice.random() * (most - LEAST_RADIUS)
    while True:
        placed: list[Placed] = []
        for _ in range(TRIES):
            r = max(LEAST_RADIUS, radius * (0.9 + 0.1 * dice.random()))
            x = left + r + dice.random() * (right - left - 2 * r)
            y = top + r + dice.random() * (bottom - top - 2 * r)
            if all(math.hypot(x - other.x, y - other.y) >= r + other.radius + GAP for other in placed):
                placed.append(Placed(x, y, r))
                if len(placed) == count:
                    return placed
        radius = max(LEAST_RADIUS, radius * 0.93)


def _near(dice: Dice, colour: Colour) -> tuple[int, int, int]:
    """The colour, jittered."""
    red, green, blue = (min(255, max(0, value + dice.between(-JITTER, JITTER))) for value in colour.rgb)
    return red, green, blue


def _background(dice: Dice) -> Image.Image:
    """Light and nearly grey: plain, shaded from one side to the other, or in soft blotches."""
    kind = dice.random()
    first = _light(dice)
    if kind < 0.5:
        return Image.new("RGB", (SIZE, SIZE), first)
    if kind < 0.8:
        across = dice.chance(0.5)
        shades = Image.new("RGB", (2, 1) if across else (1, 2), first)
        shades.putpixel((1, 0) if across else (0, 1), _light(dice))
        return shades.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    blotches = Image.new("RGB", (4, 4))
    blotches.putdata([_light(dice, first) for _ in range(16)])
    return blotches.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _light(dice: Dice, near: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    if near is not None:
        step = dice.between(-8, 8)
        return near[0] + step, near[1] + step, near[2] + step
    grey = dice.between(212, 244)
    return grey + dice.between(-6, 6), grey + dice.between(-6, 6), grey + dice.between(-6, 6)


def _paint(pen: ImageDraw.ImageDraw, shape: str, circle: Placed, fill: tuple[int, int, int]) -> None:
    x, y, r = (value * FINER for value in circle)
    if shape == "circle":
        r *= 0.9
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        r *= 0.78  # upright: its corners stay inside the circle only up to 0.71, its sides look as large as the rest
        pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "triangle":
        pen.polygon(_corners(x, y + 0.12 * r, (r, r, r)), fill=fill)
    elif shape == "star":
        pen.polygon(_corners(x, y, (r, 0.42 * r) * 5), fill=fill)
    else:
        arm, half = r, 0.3 * r
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)


def _corners(x: float, y: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Points around a centre, the first one straight above it."""
    turns = [2 * math.pi * place / len(radii) for place in range(len(radii))]
    return [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in zip(radii, turns)]
