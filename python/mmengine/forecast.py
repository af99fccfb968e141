"""The core's forecasts of a model that need not be there: mmengine/forecast.h in Python."""

from __future__ import annotations

from typing import Any

from mmengine import _core
from mmengine.core import KV_DTYPES, WEIGHT_DTYPES
from mmengine.options import choice, count


def census(
    path: str, weight_dtype: str = "auto", text_only: bool = False, draft: bool = False
) -> dict[str, Any]:
    """Tensors, parameters and bytes by component, from the config of a directory alone.

    resident_bytes and whole_bytes of a component are those on a GPU under `weight_dtype` ("auto",
    "bf16", "fp8", "int4"); draft: the directory is an EAGLE head. See mmengine/forecast.h.
    """
    return _core.census(path, weight_dtype, text_only, draft)


def forecast_cpu(
    path: str,
    *,
    weight_dtype: str = "auto",
    kv_dtype: str = "auto",
    max_context: int | None = None,
    max_batch: int | None = None,
    prefill_chunk: int | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Memory of an Engine(path, device="cpu") that is not loaded; see mmengine/forecast.h."""
    options = _core.EngineOptions()
    options.weight_dtype = choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
    options.kv_dtype = choice("kv_dtype", kv_dtype, KV_DTYPES)
    options.max_context = count("max_context", max_context)
    options.max_batch = count("max_batch", max_batch)
    options.prefill_chunk = count("prefill_chunk", prefill_chunk)
    options.threads = count("threads", threads)
    options.memory_bytes = memory_bytes or 0
    return _core.forecast_cpu(path, options)
