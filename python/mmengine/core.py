"""The C++ core as the rest of the package sees it: tables of words, options, parameters, loading.

Only this file and forecast.py import `_core`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine import _core
from mmengine.outputs import EngineStats, MemoryPlan
from mmengine.progress import bar, stepwise
from mmengine.sampling import SamplingParams, answer_seed

CoreEngine = _core.Engine
EngineOptions = _core.EngineOptions

WEIGHT_DTYPES = {
    "auto": _core.WeightDtype.automatic,
    "f32": _core.WeightDtype.f32,
    "bf16": _core.WeightDtype.bf16,
    "fp8": _core.WeightDtype.fp8,
    "int8": _core.WeightDtype.int8,
    "int4": _core.WeightDtype.int4,
}
KV_DTYPES = {
    "auto": _core.KvDtype.automatic,
    "f32": _core.KvDtype.f32,
    "bf16": _core.KvDtype.bf16,
    "fp8": _core.KvDtype.fp8,
}


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint or synthetic model holds: layout, config, tensors under the engine's names.

    `kind` is "model" or "draft head"; `quantization` as stored: "none", "fp8, ...", "int8, ..." or
    "int4, ..."; `vision` the sizes of a vision tower, or None. Reads its config and the headers of
    its files, and of the weights only activation scales. A tensor's `dtype` is the stored one: "i8"
    and "u8" are codes of int8 and int4, of these two in a byte.
    """
    info = _core.inspect(os.fspath(path))
    config = {
        name: getattr(info, name)
        for name in (
            "architecture",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_context",
            "rope_type",
            "rope_theta",
            "rope_factor",
            "rope_original_context",
            "rope_attention_factor",
            "rope_beta_fast",
            "rope_beta_slow",
            "rope_truncate",
            "rope_low_freq_factor",
            "rope_high_freq_factor",
            "rope_scaling_beta",
            "rope_scaling_context",
            "norm_eps",
            "tied_embeddings",
            "eos_ids",
        )
    }
    return {
        "kind": info.kind,
        "layout": info.layout,
        "config": config,
        "weight_dtype": info.weight_dtype,
        "quantization": info.quantization,
        "vision": info.vision,
        "tensors": [
            {"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in info.tensors
        ],
        "bytes": info.weights_bytes,
        "warnings": info.warnings,
    }


def load_core(
    path: Path, options: EngineOptions, progress: bool | None, check: Callable[[], None]
) -> CoreEngine:
    """The engine of a directory, with a bar while it loads; what `check` raises stops it."""
    info = _core.inspect(str(path))
    with bar("load", info.weights_bytes, progress) as advance:
        report = stepwise(advance, info.weights_bytes)

        def step(fraction: float) -> None:
            check()
            report(fraction)

        options.progress = step
        return _core.Engine(str(path), options)


def core_params(
    params: SamplingParams, ends: tuple[int, ...], index: int = 0
) -> _core.SamplingParams:
    """`params` for answer `index` of n, which `ends`, too, end.

    The prompt's log-probabilities come with the first answer.
    """
    core = _core.SamplingParams()
    core.max_tokens = -1 if params.max_tokens is None else params.max_tokens
    core.min_tokens = params.min_tokens or 0
    core.temperature = params.temperature or 0.0
    core.top_p = 1.0 if params.top_p is None else params.top_p
    core.min_p = params.min_p or 0.0
    core.top_k = params.top_k or 0
    core.seed = answer_seed(params.seed, index)
    repetition = params.repetition_penalty
    core.repetition_penalty = 1.0 if repetition is None else repetition
    core.frequency_penalty = params.frequency_penalty or 0.0
    core.presence_penalty = params.presence_penalty or 0.0
    core.logit_bias = list((params.logit_bias or {}).items())
    core.logprobs = -1 if params.logprobs is None else params.logprobs
    core.prompt_logprobs = -1 if params.prompt_logprobs is None or index else params.prompt_logprobs
    core.ignore_eos = bool(params.ignore_eos)
    core.stop_token_ids = [*(params.stop_token_ids or ()), *(() if params.ignore_eos else ends)]
    return core


def scoring_params() -> _core.SamplingParams:
    """Those of a request for logits, which generates nothing."""
    return _core.SamplingParams()


def stats_of(core: CoreEngine) -> EngineStats:
    """Its counts."""
    stats = core.stats()
    return EngineStats(**{name: getattr(stats, name) for name in EngineStats.__annotations__})


def plan_of(core: CoreEngine) -> MemoryPlan:
    """Where its memory goes."""
    plan = core.plan()
    return MemoryPlan(
        weights_bytes=plan.weights_bytes,
        resident_bytes=plan.resident_bytes,
        bytes_per_token=plan.bytes_per_token,
        flops_per_token=plan.flops_per_token,
        flops_per_logits_row=plan.flops_per_logits_row,
        flops_per_position=plan.flops_per_position,
        kv_bytes_per_token={
            "f32": plan.kv_bytes_per_token_f32,
            "bf16": plan.kv_bytes_per_token_bf16,
            "fp8": plan.kv_bytes_per_token_fp8,
        },
        kv_dtype=plan.kv_dtype.name,
        kv_blocks=plan.kv_blocks,
        kv_block_tokens=plan.kv_block_tokens,
        max_context=plan.max_context,
        regions=plan.regions,
    )
