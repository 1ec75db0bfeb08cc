"""Scores: equal to the packages' own command lines, CIDEr-D by hand, and what only we say of texts."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from workers.score import Options, PackageMissing, score
from workers.score.cider import cider
from workers.score.metrics import check_packages, warnings_of
from workers.score.packages import need
from workers.score.rouge import rouge
from workers.score.sacre import tokenizer_for
from workers.score.text import as_answer, caption_words, words

WORDS = {
    "en": "the old town has three towers, two gates, a bridge. Nobody's dog-eared maps show it; 1997 it rained 3.5 m!",
    "de": "die alte Stadt hat drei Türme, zwei Tore, eine Brücke. Größere Städte übersehen sie; 1997 fiel 3,5 m Regen!",
    "zh": "这 座 古城 有 三座 塔 ， 两扇 门 和 一座 桥 。 1997 年 下 了 3.5 米 雨 ！ GPU 很 快",
    "ar": "في المدينة القديمة ثلاثة أبراج، وبوابتان وجسر. لا تظهر على الخرائط؛ في 1997 هطل 3.5 متر من المطر!",
}


def pairs(language: str, count: int = 250, seed: int = 1) -> tuple[list[str], list[str], list[str]]:
    """(outputs, references, second references): sentences with words changed, dropped and moved; some empty."""
    generator = random.Random(f"{language}{seed}")
    vocabulary = WORDS[language].split()
    space = "" if language == "zh" else " "

    def noisy(sentence: list[str]) -> list[str]:
        kept = [generator.choice(vocabulary) if generator.random() < 0.2 else word for word in sentence]
        kept = [word for word in kept if generator.random() > 0.1]
        if len(kept) > 3 and generator.random() < 0.3:
            kept = kept[2:] + kept[:2]
        return kept

    sentences = [[generator.choice(vocabulary) for _ in range(generator.randint(1, 30))] for _ in range(count)]
    outputs = [space.join(noisy(sentence)) if generator.random() > 0.02 else "" for sentence in sentences]
    return outputs, [space.join(sentence) for sentence in sentences], [space.join(noisy(s)) for s in sentences]


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def command(*words: str) -> str:
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, env=environment, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", WORDS)
def test_bleu_and_chrf_are_those_of_sacrebleus_command(tmp_path: Path, language: str) -> None:
    outputs, references, _ = pairs(language)
    said = command(
        "sacrebleu", lines(tmp_path / "ref", references), "-i", lines(tmp_path / "hyp", outputs), "-m", "bleu", "chrf",
        "--tokenize", tokenizer_for(language)[0], "-w", "8", "--format", "json",
    )  # fmt: skip
    theirs = json.loads(said)
    ours = score(["bleu", "chrf"], outputs, [[text] for text in references], Options(language=language))
    for metric, printed in zip(ours, theirs, strict=True):
        assert f"{metric.score:.8f}" == f"{printed['score']:.8f}"
        assert metric.signature == printed["signature"]
    assert 5 < ours[0].score < 95


def test_several_references_and_chrf_plus_plus(tmp_path: Path) -> None:
    outputs, first, second = pairs("en")
    files = [lines(tmp_path / "a", first), lines(tmp_path / "b", second)]
    hyp = lines(tmp_path / "hyp", outputs)
    common = ["-i", hyp, "-m", "bleu", "chrf", "--chrf-word-order", "2", "-w", "8", "--format", "json"]
    theirs = json.loads(command("sacrebleu", *files, *common))
    ours = score(["bleu", "chrf++"], outputs, list(zip(first, second)), Options(language="en"))
    assert [f"{one.score:.8f}" for one in ours] == [f"{one['score']:.8f}" for one in theirs]


def test_each_document_may_have_its_own_number_of_references() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    outputs, first, second = pairs("de", 40)
    references = [[a, b] if i % 3 else [a] for i, (a, b) in enumerate(zip(first, second))]
    streams = [first, [b if i % 3 else None for i, b in enumerate(second)]]
    ours = score(["bleu", "chrf"], outputs, references, Options(language="de"))
    assert ours[0].score == pytest.approx(BLEU().corpus_score(outputs, streams).score, abs=1e-9)
    assert ours[1].score == pytest.approx(CHRF().corpus_score(outputs, streams).score, abs=1e-9)


@pytest.mark.parametrize(
    "outputs", [[""], ["", ""], ["x"], ["the cat sat"], ["a b c d e f"], ["the the the the the"], ["."], ["the cat on"]]
)
def test_odd_corpora_score_as_in_sacrebleu(outputs: list[str]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    references = ["the cat sat on the mat"] * len(outputs)
    ours = score(["bleu", "chrf", "chrf++"], outputs, [[text] for text in references], Options())
    theirs = [metric.corpus_score(outputs, [references]).score for metric in (BLEU(), CHRF(), CHRF(word_order=2))]
    assert [one.score for one in ours] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(
    ("language", "stemmer"), [("en", False), ("en", True), ("de", False), ("zh", False), ("ar", False)]
)
def test_rouge_is_that_of_its_command(tmp_path: Path, language: str, stemmer: bool) -> None:
    types = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    outputs, references, _ = pairs(language)
    command(
        "rouge_score.rouge", f"--target_filepattern={lines(tmp_path / 'ref', references)}",
        f"--prediction_filepattern={lines(tmp_path / 'hyp', outputs)}", f"--output_filename={tmp_path / 'out.csv'}",
        f"--rouge_types={','.join(types)}", "--aggregate=false", f"--use_stemmer={str(stemmer).lower()}",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    ours = rouge(types, outputs, [[text] for text in references], tokenizer="ascii", stemmer=stemmer)
    for metric in ours:
        assert [f"{value:f}" for value in metric.rows[:, 0]] == [row[f"{metric.name}-F"] for row in rows]
    if language == "en":
        assert 20 < ours[0].score < 95


def test_rouge_of_other_scripts_sees_words() -> None:
    for language in ("zh", "ar"):
        outputs, references, _ = pairs(language)
        options = Options(language=language)
        [found] = score(["rouge1"], outputs, [[text] for text in references], options)
        assert 40 < found.score < 95
        assert "tok:unicode" in found.signature


def test_a_stemmer_that_is_not_used_is_not_claimed() -> None:
    options = Options(language="de", stemmer=True)
    [found] = score(["rouge1"], ["Stadt"], [["Städte"]], options)
    assert "stem:no" in found.signature
    [warning] = warnings_of(["rouge1"], options)
    assert "not stemmed" in warning
    assert "stem:yes" in score(["rouge1"], ["towns"], [["town"]], Options(stemmer=True))[0].signature
    assert warnings_of(["rouge1"], Options(stemmer=True)) == []


def test_of_several_references_the_best_counts() -> None:
    [found] = rouge(["rouge1"], ["a b c"], [["x y z", "a b c"]], tokenizer="ascii", stemmer=False)
    assert found.score == 100.0


def test_words_of_every_script() -> None:
    assert words("Die GRÖßTE Stadt, 3 m.") == ["die", "größte", "stadt", "3", "m"]
    assert words("有三座塔。GPU很快") == ["有", "三", "座", "塔", "gpu", "很", "快"]
    assert words("हिन्दी में") == ["हिन्दी", "में"], "vowel signs belong to their letters"
    assert words("في المدينة.") == ["في", "المدينة"]
    assert len(words("ที่นี่")) == 2, "a vowel below or above does not count by itself"


def test_words_of_captions() -> None:
    assert caption_words("A man's T-shirt: it doesn't fit (3.5 m).") == [
        "a", "man", "'s", "t-shirt", "it", "does", "n't", "fit", "3.5", "m",
    ]  # fmt: skip
    assert caption_words("Two dogs -- running, “fast”!") == ["two", "dogs", "running", "fast"]


def test_cider_by_hand() -> None:
    # idf of "a" is log(2/2) = 0; of cat, dog, "a cat", "a dog" log 2; no trigrams. 10 · (1 + 1 + 0 + 0) / 4 = 5.
    same = cider(["a cat", "a dog"], [["a cat"], ["a dog"]])
    assert same.score == pytest.approx(500)
    # Unigrams alone match, and the output is one bigram shorter: 10 · 1/4 · exp(-1/72).
    shorter = cider(["cat", "a dog"], [["a cat"], ["a dog"]])
    assert shorter.rows[0, 0] == pytest.approx(2.5 * math.exp(-1 / 72))
    # The clip: three cats count once, over a norm of three: 10 · 1/3 · 1/4 · exp(-4/72).
    repeated = cider(["cat cat cat", "dog"], [["cat"], ["dog"]])
    assert repeated.rows[0, 0] == pytest.approx(10 / 12 * math.exp(-4 / 72))
    # The mean over references, of which the second shares nothing.
    two = cider(["a cat", "a dog"], [["a cat", "zebras"], ["a dog"]])
    assert two.rows[0, 0] == pytest.approx(2.5)


def test_cider_properties() -> None:
    assert cider(["a cat"], [["a cat"]]).score == 0, "one image has no idf"
    assert cider(["", "dog"], [["a cat"], ["a dog"]]).rows[0, 0] == 0
    assert cider(["A Cat!", "a dog."], [["a cat"], ["a dog"]]).score == pytest.approx(500), (
        "case and stops do not count"
    )
    texts, references, others = pairs("en", 60)
    both = list(zip(references, others))
    whole = cider(texts, both)
    assert cider(texts, [pair[::-1] for pair in both]).score == pytest.approx(whole.score), "no order of references"
    assert cider(references, [[text] for text in references]).score >= whole.score


def naive_cider(outputs: list[str], references: list[tuple[str, ...]]) -> list[float]:
    """The formula again, as dense vectors over the whole vocabulary."""
    values = np.zeros(len(outputs))
    split = [[caption_words(text) for text in refs] for refs in references]
    for n in range(1, 5):

        def grams(tokens: list[str], n: int = n) -> Counter:
            return Counter(zip(*(tokens[i:] for i in range(n))))

        made = [grams(caption_words(text)) for text in outputs]
        wanted = [[grams(tokens) for tokens in refs] for refs in split]
        vocabulary = sorted({gram for counts in [*made, *(c for refs in wanted for c in refs)] for gram in counts})
        frequency = np.array([sum(any(gram in counts for counts in refs) for refs in wanted) for gram in vocabulary])
        idf = np.log(len(outputs)) - np.log(np.maximum(frequency, 1))
        for row, refs in enumerate(wanted):
            c = idf * [made[row][gram] for gram in vocabulary]
            for index, counts in enumerate(refs):
                r = idf * [counts[gram] for gram in vocabulary]
                norm = np.linalg.norm(c) * np.linalg.norm(r)
                length = max(len(caption_words(outputs[row])) - 1, 0) - max(len(split[row][index]) - 1, 0)
                penalty = np.exp(-(length**2) / 72)
                values[row] += penalty * (np.minimum(c, r) @ r / norm if norm else 0) * 10 / 4 / len(refs)
    return values.tolist()


def test_cider_against_dense_vectors() -> None:
    outputs, first, second = pairs("en", 40, seed=5)
    references = list(zip(first, second))
    assert cider(outputs, references).rows[:, 0].tolist() == pytest.approx(naive_cider(outputs, references))


def test_exact_and_strict() -> None:
    outputs = ["Caf\u00e9  noir", "cafe\u0301 noir", "STRASSE", "7", ""]
    references = [["cafe\u0301 noir"], ["cafe\u0301 noir"], ["straße"], ["8", "7"], ["x"]]
    loose, strict = score(["exact", "exact_strict"], outputs, references, Options())
    assert loose.rows[:, 0].tolist() == [1, 1, 1, 1, 0]
    assert strict.rows[:, 0].tolist() == [0, 1, 0, 1, 0]
    [kept] = score(["exact"], outputs, references, Options(ignore_case=False))
    assert kept.rows[:, 0].tolist() == [0, 1, 0, 1, 0]
    loose, strict, chrf = score(["exact", "exact_strict", "chrf"], ["", None], [[""], [""]], Options())
    assert loose.rows[:, 0].tolist() == strict.rows[:, 0].tolist() == [1, 0], "what was never made equals nothing"
    assert chrf.score == 0
    assert as_answer(" \u212bngstr\u00f6m\n", False) == "\u00c5ngström"


def test_tokenizers_by_language() -> None:
    assert tokenizer_for("zh-TW") == ("zh", None)
    assert tokenizer_for("de-AT") == ("13a", None)
    assert tokenizer_for(None) == ("13a", None)
    tokenizer, warning = tokenizer_for("ja")
    assert (tokenizer == "ja-mecab") == (warning is None)
    if warning:
        assert "sacrebleu[ja]" in warning
        assert warnings_of(["bleu"], Options(language="ja")) == [warning]
    assert warnings_of(["chrf"], Options(language="ja")) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        PackageMissing, match=r"^chrf needs the package sacrebleu: pip install 'corpusmill\[evaluate\]'$"
    ):
        check_packages(["exact", "chrf"])
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(PackageMissing, match="ROUGE needs the package rouge-score"):
        need("rouge_score.rouge_scorer", "ROUGE")
