"""What each data-parallel worker does: read its lanes, sum gradients over all workers, update, score, save."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infra.storage import Location, scratch_folder
from model_runtime.batches import TrainingDocument, collate, label_count, micro_batches
from model_runtime.optimizer import Optimizer, Schedule
from model_runtime.training import Method, TrainingModel
from workers.examples import Skipped

from .errors import RunError, SkipRateError
from .feed import Cursor, FeedSettings, Step
from .source import RowGroup
from .training_checkpoint import Checkpoints, History, Progress, SkipLog

# A run that keeps overflowing will not find its way back.
_MAX_BAD_STEPS = 20
_BUCKET = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """All a worker needs. `fingerprint` marks the run's checkpoints; `extra_files` go beside the model."""

    device: str
    threads: int | None
    method: Method
    schedule: Schedule
    betas: tuple[float, float]
    weight_decay: float
    vision_rate: float
    clip: float
    seed: int
    feed: FeedSettings
    max_batch_tokens: int
    max_skip_rate: float
    held_out: tuple[RowGroup, ...]
    held_out_every: int
    task_names: tuple[str, ...]
    output: str
    checkpoint_every: int
    keep_checkpoints: int
    dtype: str
    fingerprint: str
    extra_files: dict[str, str]


class Workers:
    """The data-parallel group as seen by one worker: its rank, how many there are, and sums over all."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all workers, in place; also a barrier."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Many tensors of one dtype summed in place, a bucket at a time."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= _BUCKET:
                self._sum_bucket(bucket)
                bucket = []
        self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        if not bucket:
            return
        flat = self.sum(torch.cat([tensor.flatten() for tensor in bucket]))
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.copy_(part.view_as(tensor))


class TrainingLoop:
    """One worker's part of a run; made anew after a restart, it goes on from the newest checkpoint."""

    def __init__(
        self,
        settings: LoopSettings,
        workers: Workers,
        steps: Callable[[int, Cursor], Iterator[Step]],
        post: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._steps = steps
        self._post = post if workers.rank == 0 else lambda event: None
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = torch.device(settings.device)
        self._model = TrainingModel.load(settings.feed.folder(), settings.method, device)
        self._optimizer = Optimizer(
            self._model.trainable(),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            vision_rate=settings.vision_rate,
        )
        self._checkpoints = Checkpoints(Location(settings.output), settings.keep_checkpoints)
        self._lanes = list(range(workers.rank, settings.feed.lanes, workers.count))
        self._held_out: list[TrainingDocument] | None = None
        self._held_out_skipped = 0
        self._bad_steps = 0

    def run(self) -> None:
        """Train to the end and write the model; RunError, ModelError and StorageError end it for good."""
        progress = self._start()
        streams = {lane: self._steps(lane, progress.cursors[lane]) for lane in self._lanes}
        self._post({"event": "start", "step": progress.step, "host": socket.gethostname(), "pid": os.getpid()})
        while progress.step < self._settings.schedule.steps:
            progress = self._step(progress, streams)
            if progress.step % self._settings.checkpoint_every == 0:
                self._save(progress)
        if progress.step % self._settings.checkpoint_every:
            self._save(progress)
        self._export()

    def _start(self) -> Progress:
        settings = self._settings
        found = self._checkpoints.latest()
        self._skips = {lane: SkipLog() for lane in self._lanes}
        if found is None:
            lanes = settings.feed.lanes
            return Progress(fingerprint=settings.fingerprint, step=0, cursors=(Cursor(),) * lanes, history=History())
        self._checkpoints.load(found, self._optimizer)
        self._skips = {lane: self._checkpoints.load_skips(found.step, lane) for lane in self._lanes}
        return found

    def _step(self, progress: Progress, streams: dict[int, Iterator[Step]]) -> Progress:
        started = time.perf_counter()
        settings, history = self._settings, progress.history
        parts = {lane: next(streams[lane]) for lane in self._lanes}
        documents = [document for part in parts.values() for document in part.documents]
        skipped = self._note_skips(parts)
        # Dropout must not depend on how often the run was interrupted.
        torch.manual_seed(hash((settings.seed, progress.step, self._workers.rank)) & 0x7FFFFFFF)
        loss, encoder_tokens = self._backward(documents)
        totals = torch.tensor(
            [loss, label_count(documents), encoder_tokens, sum(len(d.examples) for d in documents), skipped],
            dtype=torch.float64,
        ).to(self._sum_device)
        loss, labels, tokens, examples, skipped = self._workers.sum(totals).tolist()
        gradients = list(self._optimizer.gradients())
        self._workers.sum_all(gradients)
        for gradient in gradients:
            gradient.div_(max(1.0, labels))
        rate = settings.schedule.rate(progress.step)
        norm = self._optimizer.update(rate) if labels else 0.0
        self._check_norm(norm)
        mean = loss / max(1.0, labels)
        history.loss.append(mean)
        history.rate.append(rate)
        history.norm.append(norm)
        history.examples += int(examples)
        history.tokens += int(tokens + labels)
        history.skipped += int(skipped)
        self._check_skips(history)
        cursors = self._cursors(progress.cursors, {lane: part.after for lane, part in parts.items()})
        progress = Progress(fingerprint=progress.fingerprint, step=progress.step + 1, cursors=cursors, history=history)
        if self._is_due(progress.step):
            self._score_held_out(progress)
        history.seconds += time.perf_counter() - started
        self._post(
            {
                "event": "step",
                "step": progress.step,
                "loss": mean,
                "rate": rate,
                "norm": norm,
                "examples": history.examples,
                "tokens": history.tokens,
                "seconds": history.seconds,
                "skipped": history.skipped,
            }
        )
        return progress

    def _backward(self, documents: list[TrainingDocument]) -> tuple[float, int]:
        """Gradients of the summed loss; the loss, and the encoder tokens read."""
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for group in micro_batches(documents, self._settings.max_batch_tokens):
            scores = self._model.scores(self._collate(group))
            scores.loss.backward()
            total += scores.loss.detach().double().cpu()
            tokens += sum(len(document.input_ids) for document in group)
        return float(total), tokens

    def _collate(self, group: list[TrainingDocument]) -> Any:
        config = self._model.config
        batch = collate(group, bos=config.bos_id, eos=config.eos_ids[0], pad=config.pad_id)
        return batch.to(self._model.device)

    @property
    def _sum_device(self) -> torch.device:
        # NCCL sums on GPUs only; they have float64.
        return self._model.device

    def _cursors(self, before: tuple[Cursor, ...], mine: dict[int, Cursor]) -> tuple[Cursor, ...]:
        places = torch.zeros(len(before), 3, dtype=torch.int64)
        for lane, cursor in mine.items():
            places[lane] = torch.tensor([cursor.epoch, cursor.pool, cursor.step])
        return tuple(Cursor(*place) for place in self._workers.sum(places.to(self._sum_device)).tolist())

    def _note_skips(self, parts: dict[int, Step]) -> int:
        """Count what was left out, in the first epoch only: later ones leave out the same."""
        count = 0
        for lane, part in parts.items():
            if part.after.epoch == 0 and part.skipped:
                self._skips[lane].add(part.skipped)
                count += len(part.skipped)
        return count

    def _check_skips(self, history: History) -> None:
        seen = history.skipped + history.examples
        if history.skipped and seen >= 100 and history.skipped > self._settings.max_skip_rate * seen:
            reasons = sum((log.counts for log in self._skips.values()), start=SkipLog().counts)
            worst = f", most often {reasons.most_common(1)[0][0]}" if reasons else ""
            raise SkipRateError(
                f"{history.skipped:,} of the first {seen:,} examples cannot be learned from{worst}: mend the data, or "
                f"raise limits.max_skip_rate ({self._settings.max_skip_rate})"
            )

    def _check_norm(self, norm: float) -> None:
        self._bad_steps = 0 if math.isfinite(norm) else self._bad_steps + 1
        if self._bad_steps > _MAX_BAD_STEPS:
            raise RunError(
                f"the gradients were not finite for {self._bad_steps} updates in a row: lower training.learning_rate"
            )

    def _is_due(self, step: int) -> bool:
        return bool(self._settings.held_out) and (
            step % self._settings.held_out_every == 0 or step == self._settings.schedule.steps
        )

    def _score_held_out(self, progress: Progress) -> None:
        """Loss and exactness of each task on the held-out rows, teacher-forced: exact is what greedy decoding makes."""
        settings = self._settings
        if self._held_out is None:
            made = list(settings.feed.read(settings.held_out))
            self._held_out_skipped = sum(isinstance(document, Skipped) for document in made)
            whole = [document for document in made if isinstance(document, TrainingDocument)]
            self._held_out = whole[self._workers.rank :: self._workers.count]
        sums = torch.zeros(len(settings.task_names), 4, dtype=torch.float64)
        self._model.train(False)
        with torch.inference_mode():
            for group in micro_batches(self._held_out, settings.max_batch_tokens):
                batch = self._collate(group)
                scores = self._model.scores(batch)
                columns = [scores.example_loss, scores.example_labels, scores.exact, torch.ones_like(scores.exact)]
                rows = torch.stack([column.double() for column in columns], dim=1).cpu()
                sums.index_add_(0, batch.example_task.cpu(), rows)
        self._model.train()
        sums = self._workers.sum(sums.to(self._sum_device)).cpu()
        tasks = {
            name: {"loss": loss / labels, "exact": exact / count, "n": int(count)}
            for name, (loss, labels, exact, count) in zip(settings.task_names, sums.tolist())
            if count
        }
        loss, labels, exact, count = sums.sum(0).tolist()
        found = {
            "step": progress.step,
            "loss": loss / max(1, labels),
            "exact": exact / max(1, count),
            "tasks": tasks,
            "skipped": self._held_out_skipped,
        }
        progress.history.held_out.append(found)
        self._post({"event": "held_out", **found})

    def _save(self, progress: Progress) -> None:
        for lane, log in self._skips.items():
            self._checkpoints.save_skips(progress.step, lane, log)
        self._workers.sum(torch.zeros(1, device=self._sum_device))  # every lane's skips are there
        if self._workers.rank == 0:
            self._checkpoints.save(progress, self._optimizer)
        self._post({"event": "saved", "step": progress.step})

    def _export(self) -> None:
        """The model folder: config.json last, so that a folder that can be loaded is whole."""
        settings, output = self._settings, Location(self._settings.output)
        if self._workers.rank == 0:
            with scratch_folder() as scratch:
                self._model.save(scratch, getattr(torch, settings.dtype))
                for name, text in settings.extra_files.items():
                    (scratch / name).write_text(text, encoding="utf-8")
                for path in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
                    output.child(path.name).upload(path)
        self._workers.sum(torch.zeros(1, device=self._sum_device))
