"""Training against transformers' own loss: packing, masks, adapters, and saving change nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model_runtime import Decode, EngineConfig, ModelError, Request, Sampling, load_backend, training
from model_runtime.batches import Example, TrainingDocument, collate, label_count, micro_batches
from model_runtime.optimizer import Optimizer, Schedule
from model_runtime.training import Method, TrainingModel
from tests.checkpoints import Shape, cached_checkpoint, read_tensors

SHAPE = Shape(name="training", kv_heads=1, window=5)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder() -> Path:
    return cached_checkpoint(SHAPE)


def document(seed: int, *, tokens: int = 9, images: int = 0, examples: int = 3) -> TrainingDocument:
    draw = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return draw.integers(300, 400, count, dtype=np.int32)

    image = [SHAPE.boi, *[SHAPE.image_token] * SHAPE.image_tokens, SHAPE.eoi]
    side = SHAPE.image_size
    return TrainingDocument(
        input_ids=np.array([2, *image * images, *ids(tokens)], np.int32),
        pixels=draw.integers(0, 256, (images, 3, side, side), dtype=np.uint8) if images else None,
        examples=tuple(
            Example(task=n, prefix_ids=ids(int(draw.integers(0, 7))), target_ids=ids(int(draw.integers(1, 13))))
            for n in range(examples)
        ),
    )


def batch_of(model: TrainingModel, documents: list[TrainingDocument]):
    config = model.config
    return collate(documents, bos=config.bos_id, eos=config.eos_ids[0], pad=config.pad_id)


def stock_loss(folder: Path, doc: TrainingDocument, example: Example) -> float:
    """The summed loss of one target alone, by transformers' class with nothing of ours."""
    from transformers import T5Gemma2ForConditionalGeneration

    model = T5Gemma2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    fed = torch.tensor([[2, *example.prefix_ids, *example.target_ids]])
    labels = torch.tensor([[-100] * len(example.prefix_ids) + [*example.target_ids, 1]])
    pixels = None if doc.pixels is None else torch.from_numpy(doc.pixels).float() / 127.5 - 1
    with torch.inference_mode():
        out = model(
            input_ids=torch.from_numpy(doc.input_ids.astype(np.int64))[None],
            pixel_values=pixels,
            decoder_input_ids=fed,
            labels=labels,
        )
    return float(out.loss) * (len(example.target_ids) + 1)


def test_packed_examples_lose_what_each_alone_loses(folder: Path) -> None:
    model = TrainingModel.load(folder, Method(), CPU)
    documents = [document(1), document(2, tokens=30, images=1), document(3, tokens=2, images=2, examples=1)]
    scores = model.scores(batch_of(model, documents))
    alone = [stock_loss(folder, doc, example) for doc in documents for example in doc.examples]
    assert scores.example_loss.tolist() == pytest.approx(alone, rel=1e-4)
    assert float(scores.loss.detach()) == pytest.approx(sum(alone), rel=1e-4)
    assert scores.example_labels.tolist() == [len(e.target_ids) + 1 for d in documents for e in d.examples]


def test_how_documents_are_batched_does_not_change_gradients(folder: Path) -> None:
    documents = [document(n, tokens=3 + 9 * n % 50, images=int(n % 3 == 0)) for n in range(12)]

    def gradients(budget: int) -> dict[str, torch.Tensor]:
        model = TrainingModel.load(folder, Method(train_vision=True), CPU)
        for group in micro_batches(documents, budget):
            model.scores(batch_of(model, group)).loss.backward()
        return {name: p.grad for name, p in model.trainable().items() if p.grad is not None}

    whole, pieces = gradients(10**9), gradients(100)
    assert set(whole) == set(pieces) and len(whole) > 40
    # Some are zero but for rounding (a key's bias moves no softmax), so the floor is that of all together.
    total = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * total, name


def test_micro_batches_keep_every_document_and_the_budget() -> None:
    documents = [document(n, tokens=1 + 37 * n % 200) for n in range(60)]
    groups = list(micro_batches(documents, 600))
    assert sorted(id(d) for group in groups for d in group) == sorted(map(id, documents))
    assert sum(map(label_count, groups)) == label_count(documents)
    for group in groups:
        padded = len(group) * (max(len(d.input_ids) for d in group) + max(d.decoder_length for d in group))
        assert padded <= 600 or len(group) == 1


def test_a_large_vocabularys_loss_is_taken_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradient() -> tuple[float, torch.Tensor]:
        model = TrainingModel.load(folder, Method(), CPU)
        loss = model.scores(batch_of(model, [document(1), document(2)])).loss
        loss.backward()
        (gradient,) = (p.grad for n, p in model.trainable().items() if n.endswith("embed_tokens.weight"))
        assert gradient is not None
        return float(loss.detach()), gradient

    whole = loss_and_gradient()
    monkeypatch.setattr(training, "_PIECE_LOGITS", 7 * SHAPE.vocab)
    pieces = loss_and_gradient()
    assert pieces[0] == pytest.approx(whole[0], rel=1e-6)
    assert (pieces[1] - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    def gradients(on: bool) -> list[torch.Tensor]:
        model = TrainingModel.load(folder, Method(gradient_checkpointing=on, train_vision=True), CPU)
        model.scores(batch_of(model, [document(1, images=1), document(2)])).loss.backward()
        return [p.grad for p in model.trainable().values() if p.grad is not None]

    plain, saved = gradients(False), gradients(True)
    assert len(plain) == len(saved)
    total = torch.stack([gradient.norm() for gradient in plain]).norm()
    for one, other in zip(plain, saved):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-6 * total


def test_exact_means_that_greedy_decoding_makes_it(folder: Path) -> None:
    """Targets that the runtime's own greedy decoding made are exact; with one token changed they are not."""
    documents = [document(n, tokens=5 + n, images=n % 2, examples=2) for n in range(4)]
    backend = load_backend(EngineConfig(model=str(folder), device="cpu", dtype="float32"))
    made = {
        g.key: g
        for g in backend.generate(
            Request(
                id=str(n),
                input_ids=doc.input_ids,
                pixel_values=doc.pixels,
                decodes=tuple(
                    Decode(key=f"{n}/{e}", prefix_ids=tuple(ex.prefix_ids.tolist()), sampling=Sampling(max_tokens=8))
                    for e, ex in enumerate(doc.examples)
                ),
            )
            for n, doc in enumerate(documents)
        )
    }
    backend.close()

    def with_targets(change: int) -> list[TrainingDocument]:
        return [
            dataclasses.replace(
                doc,
                examples=tuple(
                    dataclasses.replace(ex, target_ids=_changed(made[f"{n}/{e}"].token_ids, change))
                    for e, ex in enumerate(doc.examples)
                ),
            )
            for n, doc in enumerate(documents)
        ]

    model = TrainingModel.load(folder, Method(), CPU)
    model.train(False)
    batch = batch_of(model, with_targets(0))
    # A text that ran into the token limit has no EOS behind it: its own tokens are right, the EOS need not be.
    stopped = [made[f"{n}/{e}"].finish_reason == "stop" for n in range(4) for e in range(2)]
    ended = model.scores(batch)
    wrong = ended.example_labels.tolist()
    assert [bool(x) for x in ended.exact] == stopped or all(w >= 1 for w in wrong)
    assert not model.scores(batch_of(model, with_targets(1))).exact.any()
    likeliest = [model.scores(_without_eos(batch_of(model, [doc]))).exact for doc in with_targets(0)]
    assert torch.cat(likeliest).all()


def _changed(ids: tuple[int, ...], change: int) -> np.ndarray:
    target = np.array(ids, np.int32)
    if change:
        target[len(target) // 2] = 300 + (target[len(target) // 2] + 1) % 50
    return target


def _without_eos(batch):
    keep = batch.labels != 1
    return dataclasses.replace(
        batch, label_at=batch.label_at[keep], labels=batch.labels[keep], label_example=batch.label_example[keep]
    )


def test_the_vision_tower_is_frozen_unless_asked(folder: Path) -> None:
    frozen = TrainingModel.load(folder, Method(), CPU).trainable()
    trained = TrainingModel.load(folder, Method(train_vision=True), CPU).trainable()
    assert not any("vision_tower" in name for name in frozen)
    assert any("multi_modal_projector" in name for name in frozen)
    assert any("vision_tower" in name for name in trained)


def test_lora_adapts_the_language_models_projections_only(folder: Path, tmp_path: Path) -> None:
    model = TrainingModel.load(folder, Method(lora_rank=4, lora_alpha=8), CPU)
    names = set(model.trainable())
    assert names and all("lora_" in name for name in names)
    assert not any("vision" in name for name in names)
    layers = SHAPE.encoder + SHAPE.decoder
    assert len(names) == 2 * 7 * len(layers)
    documents = [document(1, images=1), document(2)]
    optimizer = Optimizer(model.trainable(), betas=(0.9, 0.98), weight_decay=0.0, clip=1.0)
    for _ in range(3):
        model.scores(batch_of(model, documents)).loss.backward()
        optimizer.update(0.05)
    model.train(False)
    with torch.inference_mode():
        adapted = model.scores(batch_of(model, documents)).example_loss
    model.save(tmp_path / "merged", torch.float32)
    merged = TrainingModel.load(tmp_path / "merged", Method(), CPU)
    merged.train(False)
    with torch.inference_mode():
        torch.testing.assert_close(
            merged.scores(batch_of(merged, documents)).example_loss, adapted, rtol=1e-4, atol=1e-4
        )
    before, after = read_tensors(folder), read_tensors(tmp_path / "merged")
    assert set(before) == set(after)
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same == (not (name.endswith("_proj.weight") and ".layers." in name and "vision" not in name)), name


def test_a_saved_model_loads_in_both_backends_with_equal_texts(folder: Path, tmp_path: Path) -> None:
    model = TrainingModel.load(folder, Method(train_vision=True), CPU)
    optimizer = Optimizer(model.trainable(), betas=(0.9, 0.98), weight_decay=0.01, clip=1.0)
    for n in range(3):
        model.scores(batch_of(model, [document(n, images=1)])).loss.backward()
        assert math.isfinite(optimizer.update(1e-2))
    model.save(tmp_path / "model", torch.float32)
    request = Request(
        id="a",
        input_ids=document(1, images=1).input_ids,
        pixel_values=document(1, images=1).pixels,
        decodes=(Decode(key="a", prefix_ids=(310, 311), sampling=Sampling(max_tokens=12)),),
    )
    texts = []
    for backend in ("native", "transformers"):
        engine = load_backend(
            EngineConfig(model=str(tmp_path / "model"), backend=backend, device="cpu", dtype="float32")
        )
        texts.append([g.token_ids for g in engine.generate([request])])
        engine.close()
    assert texts[0] == texts[1] and len(texts[0][0]) > 0
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json",
    }  # fmt: skip


def test_an_optimizer_goes_on_where_it_was_saved(folder: Path, tmp_path: Path) -> None:
    def trained(steps: range, model: TrainingModel, optimizer: Optimizer) -> None:
        for step in steps:
            model.scores(batch_of(model, [document(step)])).loss.backward()
            optimizer.update(1e-2 / (1 + step))

    def fresh() -> tuple[TrainingModel, Optimizer]:
        model = TrainingModel.load(folder, Method(), CPU)
        return model, Optimizer(model.trainable(), betas=(0.9, 0.98), weight_decay=0.1, clip=1.0)

    whole, optimizer = fresh()
    trained(range(6), whole, optimizer)
    first, optimizer = fresh()
    trained(range(3), first, optimizer)
    optimizer.save(tmp_path / "weights", tmp_path / "moments")
    second, optimizer = fresh()
    optimizer.load(tmp_path / "weights", tmp_path / "moments")
    trained(range(3, 6), second, optimizer)
    for name, weight in whole.trainable().items():
        torch.testing.assert_close(second.trainable()[name], weight, rtol=0, atol=0, msg=name)


def test_the_vision_tower_learns_at_its_share_of_the_rate(folder: Path) -> None:
    def step(share: float) -> dict[str, float]:
        model = TrainingModel.load(folder, Method(train_vision=True), CPU)
        before = {name: p.detach().clone() for name, p in model.trainable().items()}
        optimizer = Optimizer(model.trainable(), betas=(0.9, 0.98), weight_decay=0.1, clip=1.0, vision_rate=share)
        model.scores(batch_of(model, [document(1, images=1)])).loss.backward()
        optimizer.update(1e-2)
        return {name: float((p.detach() - before[name]).norm()) for name, p in model.trainable().items()}

    whole, tenth = step(1.0), step(0.1)
    towers = {name for name in whole if "vision_tower." in name and whole[name] > 0}
    assert towers and set(whole) - towers
    for name in whole:
        assert tenth[name] == pytest.approx(whole[name] * (0.1 if name in towers else 1), rel=1e-3, abs=1e-7), name


def test_a_checkpoint_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    frozen, lora = (TrainingModel.load(folder, method, CPU) for method in (Method(), Method(lora_rank=2)))
    saved = Optimizer(frozen.trainable(), betas=(0.9, 0.98), weight_decay=0.1, clip=1.0)
    saved.save(tmp_path / "weights", tmp_path / "moments")
    other = Optimizer(lora.trainable(), betas=(0.9, 0.98), weight_decay=0.1, clip=1.0)
    with pytest.raises(ModelError, match="does not fit this model or method"):
        other.load(tmp_path / "weights", tmp_path / "moments")


def test_a_step_that_overflows_changes_nothing(folder: Path) -> None:
    model = TrainingModel.load(folder, Method(), CPU)
    optimizer = Optimizer(model.trainable(), betas=(0.9, 0.98), weight_decay=0.1, clip=1.0)
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    for gradient in optimizer.gradients():
        gradient.fill_(math.inf)
    assert not math.isfinite(optimizer.update(1.0))
    for name, weight in model.trainable().items():
        assert torch.equal(weight, before[name])


def test_bfloat16_products_come_near_float32(folder: Path) -> None:
    documents = [document(n, images=n % 2) for n in range(4)]
    losses = []
    for precision in ("float32", "bfloat16"):
        model = TrainingModel.load(folder, Method(precision=precision), CPU)
        assert all(p.dtype == torch.float32 for p in model.trainable().values())
        losses.append(float(model.scores(batch_of(model, documents)).loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and losses[1] != losses[0]


def test_the_learning_rates_course() -> None:
    course = Schedule(peak=2.0, steps=100, warmup=10, final=0.1)
    rates = [course.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[10] == 2.0
    assert rates[55] == pytest.approx(0.2 + 1.8 * 0.5)
    assert rates[100] == pytest.approx(0.2) and sorted(rates[10:], reverse=True) == rates[10:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_cuda_trains_as_the_cpu_does(folder: Path, precision: str, most: float) -> None:
    documents = [document(n, tokens=5 + 7 * n, images=n % 2) for n in range(5)]

    def gradients(method: Method, device: torch.device) -> list[torch.Tensor]:
        model = TrainingModel.load(folder, method, device)
        batch = batch_of(model, documents).to(device)
        model.scores(batch).loss.backward()
        return [p.grad.cpu() for p in model.trainable().values() if p.grad is not None]

    here = gradients(Method(train_vision=True), CPU)
    there = gradients(Method(train_vision=True, precision=precision), torch.device("cuda"))
    total = torch.stack([gradient.norm() for gradient in here]).norm()
    assert torch.stack([(a - b).norm() for a, b in zip(here, there, strict=True)]).norm() <= most * total
