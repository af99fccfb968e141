"""mmengine.plan: what a model will need, and how much context fits, before any of it is there.

Reads config.json or params.json and no weight. Here are the options and the report; planner finds
what fits, by the sums of plan_memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mmengine.errors import UsageError
from mmengine.messages import quoted
from mmengine.options import boolean, choice, integer, text
from mmengine.plan_memory import Wish, kv_bytes_per_token, wanted_context
from mmengine.planner import Planner
from mmengine.sizes import parse_bytes

_KV_DTYPES = ("f32", "bf16", "fp8")
_CHOICES = {
    "cpu": (("auto", "f32", "bf16", "fp8", "int8", "int4"), ("auto", "f32", "bf16", "fp8")),
    "cuda": (("auto", "bf16", "fp8", "int4"), ("auto", "bf16", "fp8")),
}
_MOST_DEVICES = 1024


@dataclass(frozen=True)
class ModelPlan:
    """The memory plan of a model on a device, or on `devices` of a kind.

    device: "cpu" or "cuda"; device_memory: bytes of one, None when not known. weight_dtype is the
    wish, stored_dtype what the linears are stored in; kv_dtype is resolved.
    parameters, tensors, weights_bytes: of the files, vision included. components: name, tensors,
    parameters, bytes as stored, resident_bytes; without the draft head.
    resident_bytes: weights that stay loaded under the options, all devices together (an engine's
    MemoryPlan has cache and workspace in it, too);
    weights_bytes_per_device, draft_bytes, workspace_bytes, kv_bytes, needed_bytes: of one device;
    needed is the memory for one sequence of the context asked for (max_context, else the model's),
    kv_bytes the cache that there is room for (on the cpu: that loading takes).
    kv_bytes_per_token: by dtype, all devices together, without a draft head's
    draft_kv_bytes_per_token, which is in kv_dtype.
    kv_tokens: those of the whole cache, None (as kv_bytes) when device_memory is not known;
    max_context: tokens of the longest sequence; sequences: how many of the context asked for run
    at once.
    fits: whether the context asked for fits, or any at all where none was asked for.
    advice: one sentence on what to change, "" when nothing is wanting.
    device_counts: for each possible number of devices: devices, weights_bytes_per_device, kv_tokens
    by dtype, sequences by dtype; empty on the CPU and where device_memory is not known.
    """

    model: str
    device: str
    devices: int
    device_memory: int | None
    weight_dtype: str
    stored_dtype: str
    kv_dtype: str
    text_only: bool
    parameters: int
    tensors: int
    weights_bytes: int
    components: list[dict[str, Any]]
    resident_bytes: int
    weights_bytes_per_device: int
    draft_bytes: int
    workspace_bytes: int
    kv_bytes: int | None
    kv_bytes_per_token: dict[str, int]
    draft_kv_bytes_per_token: int
    needed_bytes: int
    kv_tokens: int | None
    max_context: int
    sequences: int | None
    fits: bool
    advice: str
    device_counts: list[dict[str, Any]]
    warnings: list[str]


def plan(
    model: str | os.PathLike[str] = "smollm2",
    *,
    device: str = "auto",
    weight_dtype: str = "auto",
    kv_dtype: str = "auto",
    draft: str | os.PathLike[str] | None = None,
    text_only: bool = False,
    max_context: int | None = None,
    max_batch: int | None = None,
    device_memory: int | str | None = None,
    devices: int | None = None,
    prefill_chunk: int | None = None,
    threads: int | None = None,
) -> ModelPlan:
    """Plans a model from its config alone; see ModelPlan.

    model: as for Engine, synthetic names too; of a hub repository only the config is downloaded.
    device: "cpu", "cuda", or "auto": cuda where device_memory or devices is given, else cpu.
    weight_dtype: "auto" (as stored), "f32" (cpu), "bf16", "fp8", "int8" (cpu), "int4" (cuda: 4-bit
        linears with one f16 scale per 128 columns; cpu: as Engine has it).
    kv_dtype: "auto" (f32 beside f32 weights on the cpu, else bf16), "f32" (cpu), "bf16", "fp8".
    draft: directory of an EAGLE head (cuda). text_only: the vision tower is not loaded.
    device_memory: of one device, bytes or "80GiB"; None: what this machine has free (cpu), not
        known (cuda).
    devices: tensor parallel; divides the heads and the KV heads of the model.
    Raises UsageError, ModelNotFoundError, ModelFormatError, UnsupportedModelError. That a model
    does not fit is an answer, not an error.
    """
    wish = _checked_wish(
        device, weight_dtype, kv_dtype, text_only, max_context, max_batch, device_memory, devices,
        prefill_chunk, threads,
    )  # fmt: skip
    if draft is not None and wish.device == "cpu":
        raise UsageError(
            f"draft: not supported by this version on device cpu, expected None, got "
            f"{quoted(os.fspath(draft))}",
            where="draft",
        )
    return _report(Planner(os.fspath(model), None if draft is None else os.fspath(draft), wish))


def _checked_wish(
    device: str,
    weight_dtype: str,
    kv_dtype: str,
    text_only: bool,
    max_context: int | None,
    max_batch: int | None,
    device_memory: int | str | None,
    devices: int | None,
    prefill_chunk: int | None,
    threads: int | None,
) -> Wish:
    memory = None if device_memory is None else parse_bytes("device_memory", device_memory)
    number = 1 if devices is None else integer("devices", devices, 1, _MOST_DEVICES)
    planned = memory is not None or devices is not None
    name = text("device", device)
    kind = {"auto": "cuda" if planned else "cpu"}.get(name, name.partition(":")[0])
    choice("device", kind, dict.fromkeys(("auto", *_CHOICES)))
    weights, caches = _CHOICES[kind]
    if kind == "cpu" and number > 1:
        raise UsageError(f"devices: expected 1 on device cpu, got {number}", where="devices")
    choice("weight_dtype", weight_dtype, dict.fromkeys(weights))
    choice("kv_dtype", kv_dtype, dict.fromkeys(caches))
    if kv_dtype == "auto" and kind == "cuda":
        kv_dtype = "bf16"
    return Wish(
        device=kind,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        text_only=boolean("text_only", text_only),
        devices=number,
        memory=memory,
        max_context=_optional("max_context", max_context),
        max_batch=_optional("max_batch", max_batch),
        prefill_chunk=_optional("prefill_chunk", prefill_chunk),
        threads=_optional("threads", threads),
    )


def _optional(option: str, value: int | None) -> int | None:
    return None if value is None else integer(option, value, 1, 2**31 - 1)


def _report(planner: Planner) -> ModelPlan:
    wish, census, fit = planner.wish, planner.census, planner.fit()
    wanted = wanted_context(census, wish)
    parts = census["components"]
    on_cpu = wish.device == "cpu"
    resident = fit.weights_bytes if on_cpu else sum(part["resident_bytes"] for part in parts)
    least = 1 if wish.max_context is None else wanted
    shown = ["name", "tensors", "parameters", "bytes"]
    if not on_cpu:  # the CPU packs weights across components
        shown.append("resident_bytes")
    draft_kv = 0 if planner.draft is None else kv_bytes_per_token(planner.draft, fit.kv_dtype)
    return ModelPlan(
        model=planner.model,
        device=wish.device,
        devices=wish.devices,
        device_memory=fit.memory,
        weight_dtype=wish.weight_dtype,
        stored_dtype=census["weight_dtype"],
        kv_dtype=fit.kv_dtype,
        text_only=wish.text_only,
        parameters=sum(part["parameters"] for part in parts),
        tensors=sum(part["tensors"] for part in parts),
        weights_bytes=sum(part["bytes"] for part in parts),
        components=[{name: part[name] for name in shown} for part in parts],
        resident_bytes=resident,
        weights_bytes_per_device=fit.weights_bytes,
        draft_bytes=fit.draft_bytes,
        workspace_bytes=fit.workspace_bytes,
        kv_bytes=fit.kv_bytes,
        kv_bytes_per_token={name: kv_bytes_per_token(census, name) for name in _KV_DTYPES},
        draft_kv_bytes_per_token=draft_kv,
        needed_bytes=fit.needed_bytes,
        kv_tokens=fit.tokens,
        max_context=fit.context,
        sequences=None if fit.tokens is None else fit.tokens // wanted,
        fits=fit.context >= least,
        advice=planner.advice(fit, wanted),
        device_counts=planner.device_counts(wanted),
        warnings=census["warnings"],
    )
