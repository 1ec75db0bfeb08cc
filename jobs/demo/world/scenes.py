"""Scenes: one or two groups of equal shapes, their captions and questions."""

from __future__ import annotations

from typing import NamedTuple

from .dice import Dice

COUNTS = ("one", "two", "three", "four")
MOST = len(COUNTS)
COUNTS_DE = ("ein", "zwei", "drei", "vier")


class Colour(NamedTuple):
    """A colour word, its German stem and the RGB it is painted in, give or take a little."""

    en: str
    de: str
    rgb: tuple[int, int, int]


class Shape(NamedTuple):
    """A shape's words; every German one here is masculine or neuter."""

    en: str
    plural: str
    de: str
    de_plural: str
    neuter: bool


COLOURS = (
    Colour("red", "rot", (214, 40, 40)),
    Colour("blue", "blau", (32, 104, 222)),
    Colour("green", "grün", (34, 150, 62)),
    Colour("yellow", "gelb", (246, 206, 30)),
    Colour("black", "schwarz", (24, 24, 26)),
    Colour("purple", "violett", (156, 44, 176)),
)
SHAPES = (
    Shape("circle", "circles", "Kreis", "Kreise", False),
    Shape("square", "squares", "Quadrat", "Quadrate", True),
    Shape("triangle", "triangles", "Dreieck", "Dreiecke", True),
    Shape("star", "stars", "Stern", "Sterne", False),
    Shape("cross", "crosses", "Kreuz", "Kreuze", True),
)
# The first group is always the left or the upper one.
RELATIONS = {"left": ("to the left of", "links von"), "above": ("above", "über")}
INVERSE = {"left": "to the right of", "above": "below"}


class Group(NamedTuple):
    """So many objects of one colour and shape."""

    number: int
    colour: Colour
    shape: Shape

    @property
    def en(self) -> str:
        """`three red circles`, `one blue square`."""
        return f"{COUNTS[self.number - 1]} {self.colour.en} {self.noun}"

    @property
    def noun(self) -> str:
        """The shape's word in the number of the group."""
        return self.shape.en if self.number == 1 else self.shape.plural

    def de(self, *, dative: bool) -> str:
        """The group in German, nominative or dative, as it stands without an article but for `ein`."""
        colour, shape = self.colour.de, self.shape
        if self.number == 1:
            if dative:
                return f"einem {colour}en {shape.de}"
            return f"ein {colour}{'es' if shape.neuter else 'er'} {shape.de}"
        number = COUNTS_DE[self.number - 1]
        if dative:
            return f"{number} {colour}en {shape.de_plural}n"
        return f"{number} {colour}e {shape.de_plural}"


class Scene(NamedTuple):
    """One group, or two and how the first stands to the second (`left` or `above`)."""

    groups: tuple[Group, ...]
    relation: str | None


def draw_scene(dice: Dice, most_groups: int = 2) -> Scene:
    """A scene of at most so many groups whose combination belongs to this split; two differ in colour or shape."""
    while True:
        first = _group(dice)
        if dice.chance(0.35) or most_groups == 1:
            scene = Scene((first,), None)
        else:
            while (second := _group(dice))[1:] == first[1:]:
                pass
            scene = Scene((first, second), dice.pick(tuple(RELATIONS)))
        if dice.fits("scene", scene_key(scene)):
            return scene


def scene_key(scene: Scene) -> str:
    """What the split of scenes is hashed from: the canonical caption says it all."""
    return captions(scene)["en"]


def _group(dice: Dice) -> Group:
    return Group(dice.between(1, MOST), dice.pick(COLOURS), dice.pick(SHAPES))


def captions(scene: Scene) -> dict[str, str]:
    """The one right caption in English and German."""
    first, *rest = scene.groups
    if not rest or scene.relation is None:
        return {"en": first.en, "de": first.de(dative=False)}
    en, de = RELATIONS[scene.relation]
    return {"en": f"{first.en} {en} {rest[0].en}", "de": f"{first.de(dative=False)} {de} {rest[0].de(dative=True)}"}


def draw_questions(dice: Dice, scene: Scene) -> list[tuple[str, str]]:
    """Three different questions with one right answer each."""
    asked = [_how_many(dice, scene), _exists(dice, scene)]
    if scene.relation is not None:
        asked.append(_what_stands(dice, scene, scene.relation))
    if (colour := _what_colour(dice, scene)) is not None:
        asked.append(colour)
    while len(asked) < 3:
        if (another := _exists(dice, scene)) not in asked:
            asked.append(another)
    return dice.rng.sample(asked, 3)


def _unique(scene: Scene) -> list[Group]:
    """Groups whose shape no other group has, so that the shape alone names them."""
    shapes = [group.shape for group in scene.groups]
    return [group for group in scene.groups if shapes.count(group.shape) == 1]


def _how_many(dice: Dice, scene: Scene) -> tuple[str, str]:
    unique = _unique(scene)
    if unique and dice.chance(0.7):
        group = dice.pick(unique)
        what = group.shape.plural
    else:
        group = dice.pick(scene.groups)
        what = f"{group.colour.en} {group.shape.plural}"
    question = dice.pick(("How many {} are there?", "How many {} can you see?"))
    return question.format(what), COUNTS[group.number - 1]


def _what_colour(dice: Dice, scene: Scene) -> tuple[str, str] | None:
    unique = _unique(scene)
    if not unique:
        return None
    group = dice.pick(unique)
    is_are = "is" if group.number == 1 else "are"
    question = dice.pick(("What colour {} the {}?", "Which colour {} the {}?"))
    return question.format(is_are, group.noun), group.colour.en


def _what_stands(dice: Dice, scene: Scene, relation: str) -> tuple[str, str]:
    first, second = scene.groups
    if dice.chance(0.5):
        return f"What is {RELATIONS[relation][0]} the {second.colour.en} {second.noun}?", first.en
    return f"What is {INVERSE[relation]} the {first.colour.en} {first.noun}?", second.en


def _exists(dice: Dice, scene: Scene) -> tuple[str, str]:
    """Yes and no are as likely; half of the questions name a colour as well."""
    coloured = dice.chance(0.5)
    yes = dice.chance(0.5)
    there = {(group.colour.en, group.shape.en) if coloured else ("", group.shape.en) for group in scene.groups}
    while True:
        colour, shape = dice.pick(COLOURS), dice.pick(SHAPES)
        if ((colour.en if coloured else "", shape.en) in there) == yes:
            break
    return f"Is there a {colour.en + ' ' if coloured else ''}{shape.en}?", "yes" if yes else "no"
