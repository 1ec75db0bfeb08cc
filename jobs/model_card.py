"""README.md of a trained model: what it was made from, how, what it scored, and under which terms."""

from __future__ import annotations

from typing import Any

from infra.storage import redact_url

from .text import count, duration, escape


def model_card(report: Any) -> str:
    """Markdown from a TrainReport; nothing in it comes from the documents themselves."""
    plan, history, document = report.plan, report.history, report.document
    job = plan.job
    training = job.training
    method = f"LoRA, rank {training.lora.rank}" if training.lora else "all weights"
    vision = "trained" if training.train_vision else "frozen"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [t5gemma2, corpusmill]",
        "---",
        f"# {_md(job.name)}",
        "",
        f"A T5Gemma 2 fine-tuned by corpusmill {document['versions'].get('corpusmill', '')} from "
        f"`{_md(redact_url(job.model.path))}` (content {plan.base[:12]}).",
        f"The instruction goes into the {training.prompt_in}; `tasks.json` has the prompts and languages.",
        "",
        "## Tasks",
        "",
        "| task | kind | language | target |",
        "|---|---|---|---|",
        *(f"| {t.name} | {t.kind} | {t.language or ''} | {_md(t.target)} |" for t in job.tasks),
        "",
        "## Data",
        "",
        f"{count(plan.corpus.documents, 'row')} in {count(len(plan.corpus.files), 'file')} under "
        f"`{_md(redact_url(job.source.path))}`; {history.examples:,} examples and {history.tokens:,} tokens were read.",
        *_skips(report),
        "",
        "## Training",
        "",
        f"{len(history.loss):,} steps of {job.lanes * training.documents_per_lane:,} documents in "
        f"{duration(history.seconds)}; {method}, vision tower {vision}; AdamW, peak learning rate "
        f"{training.learning_rate:g}, seed {training.seed}. Loss at the end {_mean(history.loss[-100:]):.4f} per token "
        "(mean of the last 100 steps).",
        "",
        "![loss](training.png)",
        *_scores(history),
        "",
        "## Licence",
        "",
        f"{_md(job.output.licence)}",
        "",
    ]
    return "\n".join(lines)


def _skips(report: Any) -> list[str]:
    if not report.skips.counts:
        return []
    parts = ", ".join(f"{code} {number:,}" for code, number in report.skips.counts.most_common())
    return ["", f"Left out, of the rows read in the first epoch: {parts} (listed in `training.json`)."]


def _scores(history: Any) -> list[str]:
    if not history.held_out:
        return []
    last = history.held_out[-1]
    return [
        "",
        f"## Held-out rows, after step {last['step']:,}",
        "",
        "Exactly right: every token of the target was the likeliest one, which is what greedy decoding makes.",
        "",
        "| task | loss per token | exactly right | n |",
        "|---|---|---|---|",
        *(f"| {n} | {s['loss']:.4f} | {s['exact']:.1%} | {s['n']:,} |" for n, s in last["tasks"].items()),
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _md(text: str) -> str:
    return escape(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
