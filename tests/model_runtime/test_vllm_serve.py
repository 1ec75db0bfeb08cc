"""vLLM by itself, `vllm serve` and LLM: text and images make what the native backend makes of the same document."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm")

from model_runtime import Decode, EngineConfig, Request, Sampling, load_backend
from model_runtime.images import image_array, open_image
from model_runtime.processing import Processor
from tests.checkpoints import BOS, EOS, make_checkpoint, read_tensors, shape_named, write_tensors
from tests.model_runtime.vllm_server import QUIET, ROOT, Server, environment, serving

pytestmark = pytest.mark.vllm

# Two ids end its outputs.
SHAPE = dataclasses.replace(shape_named("heads-of-64"), eos=(EOS, 106), eos_scale=1.1)
BYTES = slice(5, 261)
LONGEST = 400
# A longer document takes several steps.
CHUNK = 128
TOKENS = 24
TEXT = "The quick brown fox <eos> jumps over <start_of_image> the lazy dog.\n\nDer schnelle braune Fuchs."
TASKS = ("Summarize:", "Translate the text to French:")


@cache
def checkpoint() -> Path:
    """Its outputs hold no single bytes: vLLM keeps those back that are no UTF-8 yet, and the native backend shows them.

    A byte's logit is 0 here, and never the largest.
    """
    folder = make_checkpoint(Path(_folder().name) / "model", SHAPE)
    tensors = read_tensors(folder)
    (name,) = [name for name, tensor in tensors.items() if tensor.shape == (SHAPE.vocab, SHAPE.hidden)]
    tensors[name][BYTES] = 0
    write_tensors(folder, tensors)
    return folder


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="serve-")


def picture(seed: int, mode: str = "RGB") -> bytes:
    """A PNG of noise."""
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 255, (45, 30, channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "PNG")
    return out.getvalue()


# The second is half transparent.
PICTURES = (picture(0), picture(1, "RGBA"))


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": parts if urls else text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@cache
def processor() -> Processor:
    return Processor.load(checkpoint())


@cache
def native() -> Any:
    return load_backend(EngineConfig(model=str(checkpoint()), device="cpu", dtype="float32", threads=1))


class Expected:
    """What the native backend makes of a document."""

    def __init__(self, text: str, images: tuple[bytes, ...] = (), task: str = "") -> None:
        made = processor()
        self.input_ids = made.encoder_input(text=text, images=len(images), max_tokens=9999, overflow="reject").ids
        prefix = made.prefix_ids(task)
        squares = [image_array(open_image(image, max_pixels=10**6), made.image_size) for image in images]
        decode = Decode(key="", prefix_ids=prefix, sampling=Sampling(max_tokens=TOKENS))
        pixels = np.stack(squares) if squares else None
        request = Request(id="", input_ids=self.input_ids, pixel_values=pixels, decodes=(decode,))
        (generation,) = native().generate([request])
        assert generation.error is None
        self.token_ids = generation.token_ids
        self.text = made.decode(generation.token_ids)
        self.finish_reason = generation.finish_reason
        self.prompt_tokens = len(self.input_ids) + 1 + len(prefix)


# --- vllm serve ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--max-model-len", str(LONGEST), "--max-num-seqs", "8", "--enforce-eager"]
    options += ["--max-num-batched-tokens", str(CHUNK)]
    with serving(checkpoint(), tmp_path_factory.mktemp("serve"), *options) as made:
        yield made


def ask(server: Server, path: str, **body: Any) -> dict[str, Any]:
    status, answer = server.post(path, {"model": "tiny", "temperature": 0, "max_tokens": TOKENS, **body})
    assert status == 200, answer
    return answer


def complete(server: Server, prompt: Any, **body: Any) -> dict[str, Any]:
    return ask(server, "/v1/completions", prompt=prompt, return_token_ids=True, **body)


def chat(server: Server, *messages: dict[str, Any], **body: Any) -> dict[str, Any]:
    return ask(server, "/v1/chat/completions", messages=list(messages), return_token_ids=True, **body)


def check(answer: dict[str, Any], expected: Expected, choice: int = 0) -> None:
    made = answer["choices"][choice]
    ids = tuple(made["token_ids"])
    assert (ids[:-1] if ids[-1] in SHAPE.eos_ids else ids) == expected.token_ids
    assert (made["message"]["content"] if "message" in made else made["text"]) == expected.text
    assert made["finish_reason"] == expected.finish_reason


def test_a_completion_is_made_of_its_prompt_as_the_document(server: Server) -> None:
    expected = Expected(TEXT)
    answer = complete(server, TEXT)
    check(answer, expected)
    assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens
    check(complete(server, expected.input_ids.tolist()), expected)


def test_a_completions_suffix_is_what_the_decoder_starts_with(server: Server) -> None:
    prompts = [TEXT, "the lazy dog"]
    answer = complete(server, prompts, suffix=TASKS[0])
    for n, prompt in enumerate(prompts):
        check(answer, Expected(prompt, task=TASKS[0]), n)


def test_a_conversation_is_a_document_of_images_and_text(server: Server) -> None:
    urls = [data_url(image) for image in PICTURES]
    for task in TASKS:
        expected = Expected(TEXT, PICTURES, task)
        answer = chat(server, system(task), user(TEXT, *urls))
        check(answer, expected)
        assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens
    check(chat(server, user("", urls[1])), Expected("", PICTURES[1:]))
    check(chat(server, user(TEXT)), Expected(TEXT))


def test_a_final_assistant_message_is_continued(server: Server) -> None:
    begun = {"role": "assistant", "content": " The house"}
    options = {"add_generation_prompt": False, "continue_final_message": True}
    check(chat(server, user(TEXT), begun, **options), Expected(TEXT, task=" The house"))
    expected = Expected(TEXT, task=f"{TASKS[0]} The house")
    check(chat(server, system(TASKS[0]), user(TEXT), begun, **options), expected)


def test_more_tasks_take_the_documents_keys_from_the_cache(server: Server) -> None:
    text = "a document that nothing else here asks about " * 4
    chat(server, system(TASKS[0]), user(text))
    before = server.metric("vllm:prefix_cache_hits_total")
    check(chat(server, system(TASKS[1]), user(text)), Expected(text, task=TASKS[1]))
    whole_blocks = len(Expected(text).input_ids) // 32 * 32
    assert whole_blocks > 0
    assert server.metric("vllm:prefix_cache_hits_total") - before == whole_blocks


def test_too_long_a_text_is_cut_only_when_the_request_says_so(server: Server) -> None:
    text = "the lazy dog " * 200
    status, answer = server.post("/v1/completions", {"model": "tiny", "prompt": text})
    assert status == 400
    assert re.match(r"the document is too long: .*\(max_model_len 400 less 1", answer["error"]["message"])
    cut = complete(server, text, truncate_prompt_tokens=101)
    assert cut["usage"]["prompt_tokens"] == 101


def test_a_stop_string_ends_an_output(server: Server) -> None:
    whole = Expected(TEXT, task=TASKS[1])
    stop = whole.text[3:5]
    made = complete(server, TEXT, suffix=TASKS[1], stop=[stop])["choices"][0]
    assert (made["text"], made["finish_reason"]) == (whole.text[: whole.text.index(stop)], "stop")


def test_a_seeded_request_over_several_steps(server: Server) -> None:
    text = "the lazy dog runs over the quick brown fox again " * 15
    assert len(Expected(text).input_ids) > 2 * CHUNK
    asked = {"suffix": TASKS[0], "temperature": 1, "seed": 7}
    first, again = (complete(server, text, **asked)["choices"][0] for _ in range(2))
    # The second time its keys are there, and hardly a step of it ends within the prompt.
    assert first["token_ids"] == again["token_ids"]
    check(complete(server, "the fox"), Expected("the fox"))


BAD = {
    "too long": ("completions", {"prompt": "the lazy dog " * 2000}, "the document is too long"),
    "ids too long": ("completions", {"prompt": [9] * 500}, "the document is too long"),
    "no room beside the decoder's": ("completions", {"prompt": TEXT, "suffix": "dog " * 900}, "leaves no room"),
    "empty": ([user("")], "the document is empty"),
    "an id outside the vocabulary": ("completions", {"prompt": [2, 9999]}, "vocabulary"),
    "an image's token without an image": ("completions", {"prompt": [2, SHAPE.image_token]}, "placeholders for 0"),
    "two documents": ([user("one"), user("two")], "more than one user message"),
    "no document": ([system("Summarize:")], "no user message"),
    "turns": ([user("one"), {"role": "assistant", "content": "two"}], "continue_final_message"),
    "a tool's message": ([user("one"), {"role": "tool", "tool_call_id": "a", "content": "b"}], "not tool"),
    "a broken image": ([user(TEXT, data_url(PICTURES[0][:200]))], "image 1: the PNG is broken"),
    "no image": ([user(TEXT, data_url(PICTURES[0]), data_url(b"hello"))], "image 2: the 5 bytes are no image"),
    "another format": ([user(TEXT, data_url(b"GIF89a" + bytes(99)))], "image 1: the data is GIF"),
    "no base64": ([user(TEXT, "data:image/png;base64,é")], "image 1"),
    "not base64": ([user(TEXT, "data:image/png,abc")], "image 1"),
    "a local file": ([user(TEXT, "file:///etc/hostname")], "image 1"),
    "nobody there": ([user(TEXT, "http://127.0.0.1:1/photo.png")], "image 1 cannot be fetched"),
    "too many images": ([user(TEXT, *[data_url(PICTURES[0])] * 99)], "99 images"),
    "a sound": (
        [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA"}}]}],
        "not audio_url",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_one_line_and_the_next_is_answered(server: Server, name: str) -> None:
    *form, wanted = BAD[name]
    path, body = form if len(form) == 2 else ("chat/completions", {"messages": form[0]})
    status, answer = server.post(f"/v1/{path}", {"model": "tiny", "max_tokens": 4, **body})
    message = answer["error"]["message"]
    assert status in (400, 422), message
    assert wanted in message
    assert "\n" not in message
    check(complete(server, "the fox"), Expected("the fox"))


# --- LLM -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    """In this process, so that its model can be asked what it has encoded."""
    before = dict(os.environ)
    os.environ.update(QUIET | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from model_runtime.vllm_plugin import register

    register()
    made = LLM(
        str(checkpoint()),
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=32,
        max_num_batched_tokens=CHUNK,
        kv_cache_memory_bytes=1 << 26,
    )
    yield made
    made.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    os.environ.clear()
    os.environ.update(before)


def sampling(**settings: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=TOKENS, **settings)


def check_output(made: Any, expected: Expected) -> None:
    (one,) = made.outputs
    ids = tuple(one.token_ids)
    assert (ids[:-1] if ids[-1] in SHAPE.eos_ids else ids) == expected.token_ids
    assert (one.text, one.finish_reason) == (expected.text, expected.finish_reason)
    assert len(made.prompt_token_ids) == expected.prompt_tokens


def test_generate_takes_text_images_and_what_the_decoder_starts_with(llm: Any) -> None:
    opened = [Image.open(io.BytesIO(image)) for image in PICTURES]
    ids = Expected(TEXT).input_ids
    asked = [
        (TEXT, Expected(TEXT)),
        ({"prompt": TEXT, "decoder_prompt": TASKS[0]}, Expected(TEXT, task=TASKS[0])),
        (
            {"prompt": TEXT, "decoder_prompt": TASKS[1], "multi_modal_data": {"image": list(PICTURES)}},
            Expected(TEXT, PICTURES, TASKS[1]),
        ),
        ({"prompt": TEXT, "multi_modal_data": {"image": opened}}, Expected(TEXT, PICTURES)),
        ({"prompt": "", "multi_modal_data": {"image": opened[0]}}, Expected("", PICTURES[:1])),
        ({"prompt_token_ids": ids.tolist()}, Expected(TEXT)),
        (
            {"prompt_token_ids": ids.tolist(), "decoder_prompt": list(processor().prefix_ids(TASKS[0]))},
            Expected(TEXT, task=TASKS[0]),
        ),
        ({"prompt": TASKS[0], "multi_modal_data": {"doc": {"input_ids": ids}}}, Expected(TEXT, task=TASKS[0])),
        (
            {
                "prompt_token_ids": [BOS, *processor().prefix_ids(TASKS[1])],
                "multi_modal_data": {"doc": {"input_ids": ids}},
            },
            Expected(TEXT, task=TASKS[1]),
        ),
    ]
    made = llm.generate([prompt for prompt, _ in asked], sampling(), use_tqdm=False)
    for one, (_, expected) in zip(made, asked, strict=True):
        check_output(one, expected)


def test_two_tasks_in_a_conversation_encode_its_document_once(llm: Any) -> None:
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    before = model.counted()["encodes"]
    document = user("one document of text and an image", data_url(PICTURES[0]))
    made = llm.chat([[system(task), document] for task in TASKS], sampling(), use_tqdm=False)
    for one, task in zip(made, TASKS, strict=True):
        check_output(one, Expected("one document of text and an image", PICTURES[:1], task))
    assert model.counted()["encodes"] - before == 1


def test_a_seed_fixes_what_is_drawn_over_several_steps(llm: Any) -> None:
    from vllm import SamplingParams

    text = "a brown dog runs over the quick lazy fox again " * 15
    prompts = [{"prompt": text, "decoder_prompt": task} for task in TASKS]
    assert len(Expected(text).input_ids) > 2 * CHUNK
    drawn = [SamplingParams(temperature=1, seed=seed, max_tokens=TOKENS) for seed in (7, 8)]
    together = llm.generate(prompts, drawn, use_tqdm=False)
    alone = [llm.generate(*asked, use_tqdm=False)[0] for asked in zip(prompts, drawn, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids


def test_what_is_not_text_or_an_image_is_refused(llm: Any) -> None:
    one = Expected("a").input_ids
    refused = {
        "not audio": {"prompt": "a", "multi_modal_data": {"audio": [1]}},
        "image 1 cannot be read": {"prompt": "a", "multi_modal_data": {"image": [3]}},
        "At most 1 doc": {"prompt_token_ids": [2], "multi_modal_data": {"doc": [{"input_ids": one}] * 2}},
        "outside the vocabulary": {"prompt_token_ids": [2, 10**6], "multi_modal_data": {"doc": {"input_ids": one}}},
        "leave out decoder_prompt": {
            "prompt_token_ids": [2],
            "decoder_prompt": "a",
            "multi_modal_data": {"doc": {"input_ids": one}},
        },
    }
    for wanted, prompt in refused.items():
        with pytest.raises(Exception, match=wanted):
            llm.generate(prompt, sampling(), use_tqdm=False)
    check_output(llm.generate(TEXT, sampling(), use_tqdm=False)[0], Expected(TEXT))


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_pages_example_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "google/t5gemma-2-270m-270m" in block
    folder = tmp_path / "google" / "t5gemma-2-270m-270m"
    folder.parent.mkdir()
    # A folder of that name goes before the hub.
    folder.symlink_to(checkpoint(), target_is_directory=True)
    (tmp_path / "photo.jpg").write_bytes(_jpeg())
    (tmp_path / "example.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Summary:" in done.stdout


def _jpeg() -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(PICTURES[0])).save(out, "JPEG")
    return out.getvalue()
