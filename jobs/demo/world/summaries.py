"""The one right summary and the right answers of a report, as functions of its facts."""

from __future__ import annotations

from .dice import Dice
from .facts import Facts

# ≥ 2 ways of asking for each fact; the answer is the same for all of them.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "who": ("Who {past} the {thing}?", "Who did the work?", "By whom was the {thing} {past}?"),
    "what": ("What did {who} do?", "What did {who} do in {town}?", "What does the report say {who} did?"),
    "where": ("Where was the {thing} {past}?", "In which town was the work done?", "Where did {who} do the work?"),
    "when": ("When was the {thing} {past}?", "On which day was the work done?", "When did {who} do the work?"),
    "much": (
        "How much did it cost to {base} the {thing}?",
        "How much did the work cost?",
        "What was paid for the work?",
    ),
}


def summaries(facts: Facts) -> dict[str, str]:
    """One sentence with all five facts in each language."""
    who, action, thing, town, date, amount = facts
    number, unit = amount
    return {
        "en": f"{who} {action.past} the {thing.en} in {town} on {date.en} for {amount.en}.",
        "de": f"{who} hat am {date.de} in {town} für {number} {unit.de} {thing.de} {action.de}.",
        "es": f"El {date.es}, {who} {action.es} {thing.es} en {town} por {number} {unit.es}.",
        "zh": f"{who}于{date.zh}在{town}花{number}{unit.zh}{action.zh}{thing.zh}。",
        "ar": f"{action.ar} {thing.ar} في {town} يوم {date.ar} على يد {who} بتكلفة {amount.ar}.",
    }


def answers(facts: Facts) -> dict[str, str]:
    """The short answer to each kind of question."""
    return {
        "who": facts.who,
        "what": facts.what,
        "where": facts.town,
        "when": facts.date.en,
        "much": facts.amount.en,
    }


def draw_questions(dice: Dice, facts: Facts) -> list[tuple[str, str]]:
    """Three questions about three different facts, with their answers."""
    words = {
        "who": facts.who,
        "town": facts.town,
        "base": facts.action.base,
        "past": facts.action.past,
        "thing": facts.thing.en,
    }
    right = answers(facts)
    return [(dice.pick(QUESTIONS[kind]).format(**words), right[kind]) for kind in dice.rng.sample(list(QUESTIONS), 3)]
