"""Mistral 3 as users load it: one model is the same bits in every form, and in any company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import make_tiny_model

import mmengine
from support.outcomes import greedy, outcome, sampled

Tiny = Callable[..., str]

IDS = [(11 * i + i * i) % 97 for i in range(120)]
MODEL: dict[str, Any] = {
    "architecture": "mistral3", "vision_layers": 1, "layout": "mistral", "heads": 6,
    "yarn_factor": 8.0, "yarn_context": 32, "scaling_beta": 0.1, "seed": 81,
}  # fmt: skip
DTYPES: dict[str, dict[str, Any]] = {
    "f32": {"dtype": "f32"},
    "bf16": {"dtype": "bf16"},
    "bf16_tied": {"dtype": "bf16", "tied": True},
    "fp8_static": {"dtype": "fp8", "activations": "static"},
    "fp8_static_f32_scales": {"dtype": "fp8", "activations": "static", "scale_dtype": "f32",
                              "scale_rank": 1, "sibling_scales": "differ"},
    "fp8_static_row_scales": {"dtype": "fp8", "activations": "static", "fp8_scales": "row"},
    "fp8_dynamic": {"dtype": "fp8", "activations": "dynamic"},
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "mistral_sharded": {"shards": 4},
    "hf": {"layout": "hf"},
    "hf_sharded": {"layout": "hf", "shards": 3},
    "hf_old_prefix": {"layout": "hf", "prefix": "language_model.model."},
    "hf_text_only": {"layout": "hf", "architecture": "ministral3", "vision_layers": 0},
    "mistral_text_only": {"architecture": "ministral3", "vision_layers": 0},
    "both": {"layout": "both"},
}


def logits(directory: str | Path, **options: Any) -> np.ndarray:
    with mmengine.Engine(str(directory), **{"device": "cpu", **options}) as engine:
        return engine.logits(IDS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_model_in_any_form_gives_the_same_bits(
    dtype: str, form: str, tiny: Tiny, tmp_path: Path
) -> None:
    expected = logits(tiny(**MODEL, **DTYPES[dtype]))
    assert np.isfinite(expected).all()
    make_tiny_model(tmp_path, **{**MODEL, **DTYPES[dtype], **FORMS[form]})
    np.testing.assert_array_equal(logits(tmp_path), expected)


COMPANY: dict[str, dict[str, Any]] = {
    name: {**MODEL, **DTYPES[name]} for name in ("fp8_static", "fp8_dynamic")
}
PARAMS = {"greedy": greedy, "sampled": sampled}


@pytest.fixture(scope="module")
def alone(tiny: Tiny, prompts: list[list[int]]) -> Callable[[str, str], list[Any]]:
    """alone(model, params) -> the outcome of each prompt in an engine of its own, one thread."""
    known: dict[tuple[str, str], list[Any]] = {}

    def get(model: str, params: str) -> list[Any]:
        if (model, params) not in known:
            outcomes = known[model, params] = []
            for prompt in prompts:
                path = tiny(**COMPANY[model])
                with mmengine.Engine(path, device="cpu", threads=1) as engine:
                    outcomes.append(outcome(engine.generate(prompt, PARAMS[params]())))
        return known[model, params]

    return get


@pytest.mark.parametrize("prefill_chunk", [1, 16, None])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("model", COMPANY)
def test_company_chunks_and_threads_change_nothing(
    model: str, params: str, threads: int, prefill_chunk: int | None, tiny: Tiny,
    prompts: list[list[int]], alone: Callable[[str, str], list[Any]],
) -> None:  # fmt: skip
    expected = alone(model, params)
    engine = mmengine.Engine(
        tiny(**COMPANY[model]), device="cpu", threads=threads, prefill_chunk=prefill_chunk
    )
    with engine:
        for turn in range(0, len(prompts), 3):
            order = [(turn + i) % len(prompts) for i in range(len(prompts))]
            batch = engine.generate([prompts[i] for i in order], PARAMS[params]())
            for i, completion in zip(order, batch, strict=True):
                assert outcome(completion) == expected[i], f"prompt {i} in a batch led by {turn}"
        single = [outcome(engine.generate(prompt, PARAMS[params]())) for prompt in prompts]
    assert single == expected


@pytest.mark.parametrize("model", COMPANY)
def test_lost_and_computed_again(model: str, tiny: Tiny, prompts: list[list[int]]) -> None:
    """Seven sequences that outgrow the pool: most lose their KV and are computed again."""
    short, params = [prompt[:20] for prompt in prompts], greedy(max_tokens=100)
    with mmengine.Engine(tiny(**COMPANY[model]), device="cpu") as engine:
        expected = [outcome(engine.generate(prompt, params)) for prompt in short]
    engine = mmengine.Engine(
        tiny(**COMPANY[model]), device="cpu", max_context=128, max_batch=7, kv_blocks=6
    )
    with engine:
        batch = engine.generate(short, params)
        assert engine.stats().preemptions > 0, "the case is worth nothing without preemption"
    assert [outcome(completion) for completion in batch] == expected


@pytest.mark.parametrize("prefill_chunk", [1, 16])
@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("model", COMPANY)
def test_cut_prompts_give_the_same_logits(
    model: str, device: str, prefill_chunk: int, tiny: Tiny
) -> None:
    path = tiny(**COMPANY[model])
    expected = logits(path, device=device)
    cut = logits(path, device=device, prefill_chunk=prefill_chunk)
    np.testing.assert_array_equal(cut, expected)
