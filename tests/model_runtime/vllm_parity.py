"""vLLM's engine against transformers: documents of 1 to 4,000 tokens, a third with images, 1 to 5 decodes, shuffled."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model_runtime import Request, Sampling
from tests.checkpoints import Shape, make_checkpoint
from tests.model_runtime.oracle import Expected, Oracle, make_request

LONGEST = 4000
_TINY = Shape(name="", hidden=64, ffn=96, encoder="ssf", decoder="ssf", heads=4, kv_heads=2, head_dim=32)
SHAPES = {
    "window-7": dataclasses.replace(_TINY, name="window-7", window=7, rope_factor=8.0),
    "window-33": dataclasses.replace(_TINY, name="window-33", window=33, eos=(1, 9)),
    "window-512": dataclasses.replace(
        _TINY, name="window-512", window=512, kv_heads=1, head_dim=256, query_pre_attn_scalar=256, eos_scale=0.9
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to run the engine: its arguments beside the usual, variables, and the requests' order.

    `cached_tokens`: room for keys and values. `longest`: documents beyond it take no part. `put_back_every`: after so
    many steps, again and again, all that runs is preempted.
    """

    cached_tokens: int = 100_000
    longest: int = 1 << 20
    put_back_every: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    shuffled: bool = True


MODES = {
    "default": Mode(),
    "sorted": Mode(shuffled=False),
    "no-prefix-cache": Mode(engine={"enable_prefix_caching": False}),
    "small-chunks": Mode(engine={"max_num_batched_tokens": 96}),
    "one-row-chunks": Mode(engine={"max_num_batched_tokens": 33, "max_num_seqs": 32}),
    # Short documents fill a small cache to its last block, and then each decode's growth takes another's.
    "preemption": Mode(longest=300, cached_tokens=1088, engine={"max_num_seqs": 48, "max_model_len": 1000}),
    "all-preempted": Mode(put_back_every=10),
    "compiled": Mode(engine={"enforce_eager": False}),
    "own-process": Mode(environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What the engine made of one decode; `cached`: prompt tokens that it did not compute."""

    token_ids: tuple[int, ...]
    logprob: float
    cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All decodes by key, what was encoded, how often a request was put back, and the most memory above the start."""

    got: dict[str, Got]
    counts: dict[str, float]
    preemptions: int
    peak_bytes: int
    seconds: float


def documents(shape: Shape, count: int, seed: int = 0) -> list[Request]:
    """Lengths log-uniform, the ends among them; one decode in eight goes on well beyond the window."""
    rng = random.Random(f"{shape.name}/{seed}")
    made = []
    for i in range(count):
        drawn = round(math.exp(rng.uniform(0, math.log(LONGEST))))
        tokens = {0: 1, 1: LONGEST, 2: 31, 3: 32, 4: 33, 5: shape.window}.get(i, drawn)
        prefixes = [rng.choice([0, 1, 5, 20, rng.randint(1, 40)]) for _ in range(1 + i % 5)]
        limits = [rng.choice([1, 2, 8, 16, 24]) for _ in prefixes]
        # Windows of hundreds of tokens make long decodes: fewer of them.
        if i % (4 if shape.window < 100 else 25) == 0:
            limits[0] = shape.window + rng.choice([1, 20, 40])
        made.append(
            make_request(
                shape,
                rng,
                f"doc{i}",
                tokens=tokens,
                images=1 + i % 3 if i % 3 == 0 or rng.random() < 0.02 else 0,
                prefixes=prefixes,
                sampling=[Sampling(max_tokens=limit) for limit in limits],
            )
        )
    return made


def expected_of(folder: Path, requests: Sequence[Request]) -> dict[str, Expected]:
    """What transformers makes of every decode, one document at a time."""
    oracle = Oracle(folder)
    out: dict[str, Expected] = {}
    for request in requests:
        out |= {one.key: one for one in oracle.greedy(request)}
    return out


def run(folder: Path, shape: Shape, requests: Sequence[Request], mode: Mode) -> Run:
    """The engine in a process of its own, so that no mode leaves anything to the next."""
    requests = [request for request in requests if len(request.input_ids) <= mode.longest]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, folder, shape, requests, mode))
    process.start()
    theirs.close()
    try:
        kind, answer = ours.recv()
    except EOFError as error:
        raise RuntimeError("the engine's process ended without a word") from error
    finally:
        process.join()
    if kind == "error":
        raise RuntimeError(answer)
    return answer


def _serve(pipe: Any, folder: Path, shape: Shape, requests: list[Request], mode: Mode) -> None:
    try:
        pipe.send(("ok", _run_here(folder, shape, requests, mode)))
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        raise


def _run_here(folder: Path, shape: Shape, requests: list[Request], mode: Mode) -> Run:
    os.environ.update(
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            # Tiny tensors: one thread is faster than many, and steady on a busy machine.
            "OMP_NUM_THREADS": "1",
            **mode.environment,
        }
    )
    torch.set_num_threads(1)
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    from model_runtime.vllm_plugin import register

    register()
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": LONGEST + 700,
        "kv_cache_memory_bytes": mode.cached_tokens * _token_bytes(shape),
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        **mode.engine,
    }
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(folder), disable_log_stats=False, **settings))
    asks = [(request, decode) for request in requests for decode in request.decodes]
    if mode.shuffled:
        random.Random(5).shuffle(asks)
    before = _peak()
    started = time.perf_counter()
    for request, decode in asks:
        document = {"input_ids": request.input_ids, "pixel_values": request.pixel_values}
        params = SamplingParams(
            temperature=0,
            max_tokens=decode.sampling.max_tokens,
            logprobs=0,
            detokenize=False,
            stop_token_ids=list(shape.eos_ids),
        )
        prompt = {"prompt_token_ids": [2, *decode.prefix_ids], "multi_modal_data": {"doc": document}}
        engine.add_request(decode.key, prompt, params)
    got: dict[str, Got] = {}
    steps = 0
    while engine.has_unfinished_requests():
        for one in engine.step():
            if one.finished:
                [output] = one.outputs
                tokens = tuple(output.token_ids)
                ended = bool(tokens) and tokens[-1] in shape.eos_ids
                got[one.request_id] = Got(
                    token_ids=tokens[:-1] if ended else tokens,
                    logprob=output.cumulative_logprob,
                    cached=one.num_cached_tokens or 0,
                )
        steps += 1
        if mode.put_back_every and steps % mode.put_back_every == 0:
            engine.reset_prefix_cache(reset_running_requests=True)
    seconds = time.perf_counter() - started
    [counts] = engine.collective_rpc("t5gemma2_counts")
    grown, preemptions = _peak() - before, _preemptions(engine)
    # Its own process, if it has one, ends before this one may.
    engine.engine_core.shutdown()
    return Run(got=got, counts=counts, preemptions=preemptions, peak_bytes=grown, seconds=seconds)


def _peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _token_bytes(shape: Shape) -> int:
    """float32 keys and values of one token in all layers."""
    return 2 * len(shape.decoder) * shape.kv_heads * shape.head_dim * 4


def _preemptions(engine: Any) -> int:
    return int(sum(metric.value for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"))


def differing(expected: Mapping[str, Expected], run: Run) -> list[str]:
    """Keys whose tokens are not transformers'."""
    return [key for key, got in run.got.items() if got.token_ids != expected[key].token_ids]


def main() -> None:
    """Run modes over a whole corpus and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--modes", default=",".join(MODES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for name in asked.shapes.split(","):
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_checkpoint(Path(scratch) / "model", shape)
            requests = documents(shape, asked.documents)
            started = time.perf_counter()
            expected = expected_of(folder, requests)
            print(
                f"{name}: {len(expected)} decodes by transformers, {time.perf_counter() - started:.0f} s",
                file=sys.stderr,
            )
            for kind in asked.modes.split(","):
                made = run(folder, shape, requests, MODES[kind])
                bad = differing(expected, made)
                wrong += len(bad)
                print(json.dumps(summary(name, kind, requests, expected, made, bad)), flush=True)
    sys.exit(1 if wrong else 0)


def summary(
    shape: str, mode: str, requests: Sequence[Request], expected: Mapping[str, Expected], made: Run, bad: Sequence[str]
) -> dict[str, Any]:
    """What a run showed, in figures."""
    asked = {key: one for key, one in expected.items() if key in made.got}
    lengths = [len(one.token_ids) for one in asked.values()]
    return {
        "shape": shape,
        "mode": mode,
        "documents": sum(request.decodes[0].key in asked for request in requests),
        "with_images": sum(r.pixel_values is not None for r in requests if r.decodes[0].key in asked),
        "decodes": len(asked),
        "equal": len(asked) - len(bad),
        "beyond_window": sum(length > SHAPES[shape].window for length in lengths),
        "ended_by_eos": sum(one.finish_reason == "stop" for one in asked.values()),
        "furthest_logprob": max(abs(made.got[key].logprob - one.logprob) for key, one in asked.items()),
        "smallest_lead_of_a_wrong_one": min((expected[key].gap for key in bad), default=None),
        "preemptions": made.preemptions,
        "peak_mib": made.peak_bytes >> 20,
        "cached_tokens": sum(one.cached for one in made.got.values()),
        "seconds": round(made.seconds, 1),
        **{key: round(value, 3) for key, value in made.counts.items()},
    }


if __name__ == "__main__":
    main()
