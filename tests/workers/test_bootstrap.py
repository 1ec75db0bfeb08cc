"""Intervals and paired tests: what a resampled corpus is, how often the truth is inside, and what chance does."""

from __future__ import annotations

import numpy as np
import pytest

from workers.score import Options, compare, interval, resample, score
from workers.score.bootstrap import _weights
from workers.score.statistics import mean_statistics

from .test_score import pairs


def test_a_resampled_corpus_scores_as_sacrebleu_scores_its_sentences() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    outputs, references, _ = pairs("en", 50)
    metrics = score(["bleu", "chrf"], outputs, [[text] for text in references], Options())
    bleu, chrf = resample(metrics, samples=4, seed=3)
    [weights] = _weights(50, 4, 3)
    for n, drawn in enumerate(weights.astype(int)):
        assert drawn.sum() == 50
        made = [text for text, times in zip(outputs, drawn) for _ in range(times)]
        wanted = [text for text, times in zip(references, drawn) for _ in range(times)]
        assert bleu[n] == pytest.approx(BLEU().corpus_score(made, [wanted]).score, abs=1e-9)
        assert chrf[n] == pytest.approx(CHRF().corpus_score(made, [wanted]).score, abs=1e-9)


def test_the_same_seed_gives_the_same_intervals_in_any_company() -> None:
    values = np.random.default_rng(0).random(500)
    a, b = mean_statistics("a", "", values), mean_statistics("b", "", values**2)
    alone, together = resample([a], samples=200, seed=7)[0], resample([b, a], samples=200, seed=7)[1]
    assert np.allclose(alone, together, rtol=0, atol=1e-9)
    assert not np.allclose(alone, resample([a], samples=200, seed=8)[0])
    assert resample([a], samples=0, seed=7)[0].size == 0
    assert interval(3.0, np.empty(0), 0.95).low is None


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = mean_statistics("a", "", np.random.default_rng(1).random(100))
    whole = resample([metric], samples=100, seed=0)[0]
    monkeypatch.setattr("workers.score.bootstrap._WEIGHTS", 700)
    assert np.allclose(whole, resample([metric], samples=100, seed=0)[0])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_hold_the_truth_as_often_as_they_say(level: float) -> None:
    generator = np.random.default_rng(11)
    inside = 0
    for trial in range(300):
        sample = generator.normal(0.5, 0.2, 80)
        metric = mean_statistics("a", "", sample)
        found = interval(metric.score, resample([metric], samples=300, seed=trial)[0], level)
        assert found.low <= found.score <= found.high
        inside += found.low <= 50 <= found.high
    # Three standard errors of 300 trials, and a percent that the percentile interval lacks at 80 documents.
    assert level - 0.01 - 3 * np.sqrt(level * (1 - level) / 300) <= inside / 300 <= level + 0.06


def test_more_documents_make_narrower_intervals() -> None:
    values = np.random.default_rng(2).random(4000)
    widths = []
    for count in (100, 400, 1600):
        metric = mean_statistics("a", "", values[:count])
        found = interval(metric.score, resample([metric], samples=400, seed=0)[0], 0.95)
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.25)


def paired(this: np.ndarray, other: np.ndarray, seed: int = 0):
    ours, theirs = mean_statistics("a", "", this), mean_statistics("a", "", other)
    drawn = [resample([one], samples=500, seed=seed)[0] for one in (ours, theirs)]
    return compare(ours.score, theirs.score, *drawn, 0.95, documents=len(this))


def test_a_planted_difference_is_found_and_equal_tables_have_none() -> None:
    generator = np.random.default_rng(5)
    hard = generator.random(400)
    better = hard + generator.normal(0.02, 0.05, 400)
    found = paired(better, hard)
    assert found.significant and found.p < 0.01 and 0 < found.low < found.delta < found.high
    # The documents differ far more than the tables do: only the pairing shows it.
    assert abs(found.delta) < np.std(100 * hard) / np.sqrt(400) * 2
    back = paired(hard, better)
    assert (back.delta, back.p) == (pytest.approx(-found.delta), found.p)
    equal = paired(hard, hard)
    assert (equal.delta, equal.p, equal.significant) == (0, 1, False)


def test_few_documents_prove_nothing() -> None:
    better, worse = np.array([0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8]), np.full(8, 0.1)
    ps = {count: paired(better[:count], worse[:count]).p for count in (1, 2, 5, 8)}
    assert [ps[count] for count in (1, 2, 5)] == [1, 0.5, 0.0625]
    assert 0.0078 < ps[8] < 0.0079
    assert not paired(better[:5], worse[:5]).significant and paired(better, worse).significant


def test_chance_is_called_significant_as_often_as_the_level_allows() -> None:
    generator = np.random.default_rng(6)
    trials = 200
    called = sum(paired(generator.random(100), generator.random(100), seed).significant for seed in range(trials))
    assert called / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_the_paired_corpora_are_those_of_sacrebleus_paired_bootstrap() -> None:
    from sacrebleu.metrics import CHRF
    from sacrebleu.significance import PairedTest

    first, references, second = pairs("de", 120)
    systems = [("other", second), ("this", first)]
    _, found = PairedTest(systems, {"chrF": CHRF()}, [references], test_type="bs", n_samples=1000)()
    theirs = next(results for name, results in found.items() if name != "System")[1]
    metrics = [score(["chrf"], texts, [[text] for text in references], Options()) for texts in (first, second)]
    # With sacrebleu's own seed. Its p is one of absolute differences, and so one-sided where they are clear.
    drawn = [resample(one, samples=1000, seed=12345)[0] for one in metrics]
    absolute = np.abs(drawn[0] - drawn[1])
    delta = metrics[0][0].score - metrics[1][0].score
    p = ((absolute - absolute.mean() > abs(delta)).sum() + 1) / 1001
    assert (p, metrics[0][0].score) == (pytest.approx(theirs.p_value, abs=1e-12), pytest.approx(theirs.score))
    assert compare(metrics[0][0].score, metrics[1][0].score, *drawn, 0.95, documents=120).p > p


def test_a_thousand_samples_of_ten_thousand_documents() -> None:
    outputs, references, _ = pairs("en", 100)
    metrics = score(["bleu", "chrf", "exact"], outputs, [[text] for text in references], Options())
    many = [metric.take(np.tile(np.arange(100), 100)) for metric in metrics]
    drawn = resample(many, samples=1000, seed=0)
    assert [len(scores) for scores in drawn] == [1000] * 3
