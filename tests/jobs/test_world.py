"""The synthetic world: the same each time, honest about its split, and every target right by the document."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.world import KINDS, SCHEMA, World, documents, english, showcase, tokenizer_texts, write_shards
from jobs.demo.world.__main__ import main
from jobs.demo.world.dice import Dice, is_held_out
from jobs.demo.world.drawing import DIVIDE, GAP, SIZE, draw, place
from jobs.demo.world.facts import THINGS, WEEKDAYS, event_key
from jobs.demo.world.meaning import Clause, clause_key, draw_sentence
from jobs.demo.world.names import family_name, given_name, town
from jobs.demo.world.notes import Note, draw_note, translate
from jobs.demo.world.reports import OTHER_THINGS, Report, draw_report
from jobs.demo.world.scenes import COLOURS, COUNTS, Scene, captions, draw_scene, scene_key
from jobs.demo.world.scenes import draw_questions as scene_questions
from jobs.demo.world.summaries import answers, draw_questions, summaries

SOME = 600
DATES = {day.en for day in WEEKDAYS}
OTHER_BUILDINGS = (*OTHER_THINGS, *(thing.en for thing in THINGS))


def _reports(split: str, count: int = SOME) -> list[Report]:
    return [draw_report(Dice(3, split, "report", index), 50, 1000) for index in range(count)]


@pytest.fixture(scope="module")
def reports() -> dict[str, list[Report]]:
    return {split: _reports(split) for split in ("train", "held_out")}


def test_a_document_depends_on_its_number_only() -> None:
    for kind in KINDS:
        together = list(documents(kind, seed=5, split="train", start=0, count=8))
        alone = [next(documents(kind, seed=5, split="train", start=index, count=1)) for index in reversed(range(8))]
        assert together == alone[::-1]
        assert together != list(documents(kind, seed=6, split="train", start=0, count=8))


def test_the_same_bytes_for_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo.world.shards.ROWS_PER_SHARD", 40)
    world = World(seed=1, split="train", reports=40, notes=30, scenes=20, max_words=200)
    one = write_shards(tmp_path / "one", world)
    two = write_shards(tmp_path / "two", world, processes=2)
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 3
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_table_holds_what_was_asked_for(tmp_path: Path) -> None:
    options = ["--split", "held_out", "--seed", "2", "--reports", "300", "--notes", "300", "--scenes", "50"]
    assert main(["--out", str(tmp_path), *options]) == 0
    (path,) = tmp_path.iterdir()
    file = pq.ParquetFile(path)
    table = file.read()
    assert table.schema.equals(SCHEMA)
    assert file.metadata.row_group(0).num_rows == 512
    rows = table.to_pylist()
    assert len({row["doc_id"] for row in rows}) == 650
    assert {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS} == dict(zip(KINDS, (300, 300, 50)))
    # mixed: no half of the file is without any kind
    assert {row["kind"] for row in rows[:325]} == {row["kind"] for row in rows[325:]} == set(KINDS)
    given = {
        "report": {"body", "words", "summary_en", "summary_ar", "question_1", "answer_3"},
        "note": {"body", "words", "to_de", "to_zh"},
        "scene": {"photo", "caption_en", "caption_de", "question_2"},
    }
    for row in rows:
        for kind, columns in given.items():
            if row["kind"] == kind:
                assert all(row[column] for column in columns)
        assert (row["photo"] is None) == (row["kind"] != "scene")


@pytest.mark.parametrize(("low", "high"), [(20, 40), (50, 65), (100, 250), (50, 1000), (980, 1000)])
def test_a_report_keeps_its_length(low: int, high: int) -> None:
    for document in documents("report", seed=1, split="train", start=0, count=80, min_words=low, max_words=high):
        assert document.body is not None
        assert document.words == len(document.body.split())
        assert low <= document.words <= high


def test_a_length_without_room_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        next(documents("report", seed=1, split="train", start=0, count=1, min_words=5, max_words=15))
    assert main(["--out", str(tmp_path), "--reports", "1", "--min-words", "90", "--max-words", "80"]) == 2
    assert "max_words" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing half written"
    with pytest.raises(ValueError, match="kind"):
        next(documents("poem", seed=1, split="train", start=0, count=1))
    with pytest.raises(ValueError, match="split"):
        next(documents("note", seed=1, split="test", start=0, count=1))


def test_what_cannot_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.demo.world.shards.ROWS_PER_SHARD", 4)
    folder = tmp_path / "world"
    assert main(["--out", str(folder)]) == 2
    assert "at least one" in capsys.readouterr().err
    assert main(["--out", str(folder), "--notes", "8"]) == 0
    assert "8 documents in 2 shards" in capsys.readouterr().out
    before = sorted(path.name for path in folder.iterdir())
    assert main(["--out", str(folder), "--notes", "3"]) == 2
    assert "train-00000-of-00002.parquet" in capsys.readouterr().err
    assert main(["--out", str(folder), "--notes", "8"]) == 0, "the same world again"
    assert sorted(path.name for path in folder.iterdir()) == before
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file"), "--notes", "8"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_tenth_of_the_reports_is_long(reports: dict[str, list[Report]]) -> None:
    words = [report.words for report in reports["train"]]
    assert 0.06 < sum(count >= 300 for count in words) / len(words) < 0.14
    assert sum(count <= 250 for count in words) / len(words) > 0.8


def test_every_fact_stands_in_the_body(reports: dict[str, list[Report]]) -> None:
    for report in reports["train"] + reports["held_out"]:
        facts = report.facts
        for fact in (facts.who, facts.town, facts.date.en, facts.amount.en, facts.thing.en):
            assert re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", report.body), (fact, report.body)


def test_no_decoy_is_a_fact(reports: dict[str, list[Report]]) -> None:
    seen = 0
    for report in reports["train"] + reports["held_out"]:
        right = set(answers(report.facts).values()) | {report.facts.thing.en} | set(report.facts.who.split(" "))
        assert right.isdisjoint(report.decoys)
        assert str(report.facts.amount.number) not in {decoy.split(" ")[0] for decoy in report.decoys}
        assert all(decoy in report.body for decoy in report.decoys)
        seen += len(report.decoys)
    assert seen > 4 * len(reports["train"])


def test_answers_are_the_facts(reports: dict[str, list[Report]]) -> None:
    for index, report in enumerate(reports["train"]):
        asked = draw_questions(Dice(0, "train", "question", index), report.facts)
        right = answers(report.facts)
        assert len({answer for _, answer in asked}) == 3
        for question, answer in asked:
            assert answer in right.values()
            assert answer not in question
            assert answer == right["what"] or answer in report.body
    text = summaries(reports["train"][0].facts)
    assert all(reports["train"][0].facts.who in line for line in text.values())


def test_the_splits_share_no_name_and_no_event(reports: dict[str, list[Report]]) -> None:
    names = {}
    for split, drawn in reports.items():
        people = {part for report in drawn for part in report.facts.who.split(" ")}
        towns = {report.facts.town for report in drawn}
        events = {event_key(r.facts.action, r.facts.thing, r.facts.date) for r in drawn}
        names[split] = people, towns, events
        held_out = split == "held_out"
        assert all(is_held_out("name", name) == held_out for name in people)
        assert all(is_held_out("town", name) == held_out for name in towns)
        assert all(is_held_out("event", event) == held_out for event in events)
        decoys = {decoy for report in drawn for decoy in report.decoys} - DATES - set(OTHER_BUILDINGS)
        decoys = {decoy for decoy in decoys if not decoy[0].isdigit()}
        assert len(decoys) > 1000
        for decoy in decoys:
            # a person's two names, or a town of one word or two
            person = all(is_held_out("name", part) == held_out for part in decoy.split(" ")) and " " in decoy
            assert person or is_held_out("town", decoy) == held_out, decoy
    for train, held_out in zip(names["train"], names["held_out"]):
        assert train.isdisjoint(held_out)
    bodies = {split: " ".join(report.body for report in drawn) for split, drawn in reports.items()}
    assert not [name for name in names["held_out"][0] if len(name) > 5 and f" {name} " in bodies["train"]]


def _clauses(note: Note) -> list[Clause]:
    return [clause for meaning in note.meanings for clause in (meaning.main, meaning.other) if clause is not None]


def _combination(clause: Clause) -> str | None:
    """What the words of a clause say of its combination; None where a name stands for one of its nouns."""
    noun, what = clause.subject.noun, clause.object
    if noun is None or (what is not None and what.noun is None and clause.kind == "do"):
        return None
    if clause.kind == "there":
        assert clause.where is not None
        return f"there {noun.en} {clause.where.preposition.en}"
    if clause.adjective:
        return f"{noun.en} is {clause.adjective.en}"
    if clause.kind == "have":
        assert what is not None and what.noun is not None
        return f"{noun.en} have {what.noun.en}"
    assert clause.verb is not None
    return clause_key(noun, clause.verb, what.noun if what else None)


def _names(clause: Clause) -> set[tuple[str, str]]:
    people = [p for phrase in (clause.subject, clause.object) if phrase for p in (phrase, phrase.owner) if p]
    found = {("name", phrase.name) for phrase in people if phrase.name}
    return found | ({("town", clause.where.town)} if clause.where and clause.where.town else set())


def test_the_splits_share_no_note() -> None:
    keys: dict[str, set[str]] = {"train": set(), "held_out": set()}
    names: dict[str, set[tuple[str, str]]] = {"train": set(), "held_out": set()}
    sentences: dict[str, set[str]] = {"train": set(), "held_out": set()}
    kinds: set[str] = set()
    for split in keys:
        for index in range(2 * SOME):
            note = draw_note(Dice(3, split, "note", index))
            assert 5 <= note.words <= 40
            clauses = _clauses(note)
            kinds |= {clause.kind for clause in clauses}
            keys[split] |= {key for clause in clauses if (key := _combination(clause))}
            names[split] |= {name for clause in clauses for name in _names(clause)}
            sentences[split] |= set(note.body.split(". "))
    assert kinds == {"do", "be", "than", "there", "have"}
    assert min(map(len, keys.values())) > 300
    for split in keys:
        assert all(is_held_out("clause", key) == (split == "held_out") for key in keys[split])
        assert all(is_held_out(*name) == (split == "held_out") for name in names[split])
        assert {kind for kind, _ in names[split]} == {"name", "town"}
    assert sentences["train"].isdisjoint(sentences["held_out"])


def test_one_english_sentence_has_one_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are the same everywhere here, so that sentences come up again."""
    monkeypatch.setattr("jobs.demo.world.meaning.family_name", lambda dice: "Tolvik")
    monkeypatch.setattr("jobs.demo.world.meaning.town", lambda dice: "Velden")
    dice = Dice(4, "train", "sentences", 0)
    seen: dict[str, dict[str, str]] = {}
    again = 0
    for _ in range(20 * SOME):
        meaning = draw_sentence(dice)
        right = translate((meaning,))
        body = english.sentence(meaning)
        again += body in seen
        assert seen.setdefault(body, right) == right, body
    assert again > SOME // 4


def test_a_note_is_set_cleanly() -> None:
    for index in range(SOME):
        note = draw_note(Dice(4, "train", "note", index))
        for text in (note.body, *note.translations.values()):
            assert "  " not in text
            assert not re.search(r"[\s،,] ?[.。]", text)


def test_names_are_open() -> None:
    dice = Dice(1, "train", "names", 0)
    drawn = [draw(dice) for _ in range(SOME) for draw in (given_name, family_name, town)]
    assert len(set(drawn)) > 0.85 * len(drawn)
    assert all(3 <= len(name) <= 40 for name in drawn)
    text = "".join(drawn)
    assert set("abcdefghijklmnopqrstuvwxyz") < set(text.lower())
    assert all(mark in text for mark in "-' éöñşł")


def _scenes(split: str, count: int) -> list[tuple[Dice, Scene]]:
    drawn = []
    for index in range(count):
        dice = Dice(3, split, "scene", index)
        drawn.append((dice, draw_scene(dice)))
    return drawn


def test_objects_stand_apart_and_groups_where_the_caption_says() -> None:
    for dice, scene in _scenes("train", 150):
        png, places = draw(dice, scene)
        image = Image.open(io.BytesIO(png))
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        assert [len(circles) for circles in places] == [group.number for group in scene.groups]
        circles = [circle for group in places for circle in group]
        for number, one in enumerate(circles):
            assert one.radius <= min(one.x, one.y, SIZE - one.x, SIZE - one.y)
            for other in circles[:number]:
                assert math.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius + GAP - 1e-6
        if scene.relation is not None:
            axis = 0 if scene.relation == "left" else 1
            end = max(circle[axis] + circle.radius for circle in places[0])
            begin = min(circle[axis] - circle.radius for circle in places[1])
            assert begin - end >= DIVIDE - 1e-6


def test_scenes_of_one_group_when_asked_for() -> None:
    captions = [str(d.caption_en) for d in documents("scene", seed=3, split="train", start=0, count=80, most_groups=1)]
    assert {len(caption.split()) for caption in captions} == {3}
    assert len(set(captions)) > 30


@pytest.mark.parametrize("size", [SIZE, SIZE // 2])
def test_the_pixels_show_what_the_caption_says(size: int) -> None:
    """So many spots apart from each other, none at the edge, each nearest to its group's colour; at the model's too."""
    for dice, scene in _scenes("held_out", 40):
        png, _ = draw(dice, scene)
        image = np.asarray(Image.open(io.BytesIO(png)).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        painted = (np.ptp(image, axis=2) > 80) | (image.max(axis=2) < 120)
        assert not (painted[[0, -1]].any() or painted[:, [0, -1]].any())
        shown = Counter(_nearest(image[tuple(spot.T)]) for spot in _spots(painted))
        said: Counter[str] = Counter()
        for group in scene.groups:
            said[group.colour.en] += group.number
        assert shown == said, captions(scene)["en"]


def _spots(painted: np.ndarray) -> list[np.ndarray]:
    """The places of each set of painted pixels that touch, corners included."""
    left = {(int(row), int(column)) for row, column in np.argwhere(painted)}
    spots = []
    while left:
        spot, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            spot.append((row, column))
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= around
            edge += around
        spots.append(np.array(spot))
    return spots


def _nearest(pixels: np.ndarray) -> str:
    middle = np.median(pixels, axis=0)
    return min(COLOURS, key=lambda colour: float(np.abs(middle - colour.rgb).sum())).en


def test_few_scenes_could_be_captioned_with_the_other_relation() -> None:
    """A lone object to the left of another may stand far above it too: then two captions are true, and one is right."""
    both = 0
    scenes = _scenes("train", 3 * SOME)
    for dice, scene in scenes:
        places = place(dice, scene)
        if scene.relation is not None:
            axis = 1 if scene.relation == "left" else 0
            (low, high), (other_low, other_high) = (
                (min(c[axis] - c.radius for c in group), max(c[axis] + c.radius for c in group)) for group in places
            )
            both += max(other_low - high, low - other_high) >= DIVIDE
    assert both < 0.02 * len(scenes)


def test_the_splits_share_no_scene() -> None:
    train = {scene_key(scene) for _, scene in _scenes("train", SOME)}
    held_out = {scene_key(scene) for _, scene in _scenes("held_out", SOME)}
    assert train.isdisjoint(held_out)
    assert min(len(train), len(held_out)) > 250


def test_answers_about_scenes_are_right() -> None:
    kinds = set()
    for dice, scene in _scenes("train", SOME):
        asked = scene_questions(dice, scene)
        assert len(set(asked)) == 3
        for question, answer in asked:
            kinds.add(question.split(" ")[0])
            assert _true_answer(scene, question) == answer, (captions(scene)["en"], question)
    assert kinds == {"How", "What", "Which", "Is"}


def _true_answer(scene: Scene, question: str) -> str:
    """Answers from the scene alone, by reading the question; fails where more than one answer would do."""
    words = question.rstrip("?").split(" ")
    noun = words[-1] if words[0] not in ("How",) else words[words.index("are" if "are" in words else "can") - 1]
    fitting = [group for group in scene.groups if noun in (group.shape.en, group.shape.plural)]
    coloured = [group for group in fitting if group.colour.en in words]
    colours = {"red", "blue", "green", "yellow", "black", "purple"}
    if colours & set(words):
        fitting = coloured
    if words[0] == "Is":
        return "yes" if fitting else "no"
    (group,) = fitting
    if words[0] == "How":
        return COUNTS[group.number - 1]
    if words[1] == "colour":
        return group.colour.en
    first, second = scene.groups
    upper = "above" in words or "left" in words
    assert group is (second if upper else first)
    return (first if upper else second).en


def test_the_showcase_is_fixed_and_held_out() -> None:
    shown = showcase()
    assert shown == showcase()
    assert [document.kind for document in shown] == ["report"] * 6 + ["note"] * 6 + ["scene"] * 6
    assert shown[0].words is not None and shown[0].words >= 980
    assert all("held_out" in document.doc_id for document in shown)


def test_the_tokenizer_sees_every_language_and_prompt() -> None:
    text = "\n".join(tokenizer_texts(1, 60))
    assert "Summarize in German:" in text and "Describe the image in German:" in text
    assert re.search("[一-鿿]", text) and re.search("[ء-ي]", text) and "¿" not in text
