"""How much of a model fits where: the arithmetic behind mmengine.plan.

A GPU is planned by a formula, because nothing of it need be there; the CPU by the very sums that
loading makes. On N GPUs embedding, linears, head and the heads of the KV cache are divided, norms
and scalar scales are held by each; so is a vision tower whose heads N does not divide.

Workspace of one GPU, in bytes, for a step of R = prefill_chunk + max_batch rows (2048 + 16 unless
told), H hidden, Q and K widths of queries and keys, I inner, V vocabulary, C context:

    2 GiB for the driver's context, code and captured graphs; N > 1: 1/4 GiB for communication
    + max(R (6 H + (4 Q + 4 K + 6 I) / N),  P (6 h + (8 h + 6 i) / N))    P patches of one image
    + 4 V (max_batch + 64)  logits
    + 4 C head_dim          cos and sin

For Mistral Medium 3.5 that is 2.6 to 3.0 GiB, within the 2.5 to 4 GiB that engines of this kind
were seen to take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KV_ITEM_BYTES = {"f32": 4, "bf16": 2, "fp8": 1}

_GIB = 1 << 30
_RESERVE_BYTES, _COMMUNICATION_BYTES = 2 * _GIB, _GIB // 4
_GPU_CHUNK, _BATCH, _LOGITS_ROWS = 2048, 16, 64
_VISION = ("vision_tower", "projector")


@dataclass(frozen=True)
class Wish:
    """What is asked of a plan, checked; dtypes are resolved, counts are None where not given."""

    device: str
    weight_dtype: str
    kv_dtype: str
    text_only: bool = False
    devices: int = 1
    memory: int | None = None  # bytes of one device
    max_context: int | None = None
    max_batch: int | None = None
    prefill_chunk: int | None = None
    threads: int | None = None
    use_draft: bool = True


@dataclass(frozen=True)
class Fit:
    """What a wish comes to; bytes are of one device. kv_bytes and tokens: of the whole KV cache,
    draft included, or None when the memory is not known."""

    weights_bytes: int
    draft_bytes: int
    workspace_bytes: int
    kv_bytes: int | None
    needed_bytes: int  # with one sequence of the context asked for, at most the model's
    tokens: int | None
    context: int  # of the longest sequence, at most the one asked for; 0: nothing fits
    memory: int | None  # of one device
    kv_dtype: str


def kv_bytes_per_token(census: dict[str, Any], dtype: str) -> int:
    """Bytes of K and V of one token in all layers."""
    values: int = 2 * census["num_layers"] * census["num_kv_heads"] * census["head_dim"]
    return values * KV_ITEM_BYTES[dtype]


def wanted_context(census: dict[str, Any], wish: Wish) -> int:
    """Tokens of the context asked for: the model's unless max_context says less."""
    most: int = census["max_context"]
    return most if wish.max_context is None else wish.max_context


def fit_gpu(census: dict[str, Any], draft: dict[str, Any] | None, wish: Wish) -> Fit:
    """`census` (and that of a draft head) under `wish.weight_dtype` on `wish.devices` GPUs."""
    models = [census] + ([draft] if draft is not None and wish.use_draft else [])
    shares = [_share(model, wish) for model in models]
    # Each device has its share of the heads, and of every byte of their cache.
    per_token = sum(kv_bytes_per_token(model, wish.kv_dtype) for model in models) // wish.devices
    workspace = gpu_workspace_bytes(census, wish)
    wanted = wanted_context(census, wish)
    fixed = sum(shares) + workspace
    tokens = None
    if wish.memory is not None:
        tokens = max(wish.memory - fixed, 0) // per_token
    return Fit(
        weights_bytes=shares[0],
        draft_bytes=sum(shares[1:]),
        workspace_bytes=workspace,
        kv_bytes=None if tokens is None else tokens * per_token,
        needed_bytes=fixed + wanted * per_token,
        tokens=tokens,
        context=wanted if tokens is None else min(wanted, tokens),
        memory=wish.memory,
        kv_dtype=wish.kv_dtype,
    )


def _share(census: dict[str, Any], wish: Wish) -> int:
    """Bytes of the weights of one model that one device holds."""
    total = 0
    for part in census["components"]:
        resident, whole = part["resident_bytes"], part["whole_bytes"]
        if part["name"] in _VISION and census["vision_num_heads"] % wish.devices:
            whole = resident
        total += whole - (whole - resident) // wish.devices
    return total


def gpu_workspace_bytes(census: dict[str, Any], wish: Wish) -> int:
    """The formula at the head of this file."""
    devices = wish.devices
    batch = wish.max_batch or _BATCH
    rows = (wish.prefill_chunk or _GPU_CHUNK) + batch
    query = census["num_heads"] * census["head_dim"]
    key = census["num_kv_heads"] * census["head_dim"]
    inner, hidden = census["intermediate_size"], census["hidden_size"]
    step = rows * (6 * hidden + (4 * query + 4 * key + 6 * inner) // devices)
    if not wish.text_only:
        width, vision_inner = census["vision_hidden_size"], census["vision_intermediate_size"]
        patch = 6 * width + (8 * width + 6 * vision_inner) // devices
        step = max(step, census["vision_patches"] * patch)
    reserve = _RESERVE_BYTES + (_COMMUNICATION_BYTES if devices > 1 else 0)
    logits = 4 * census["vocab_size"] * (batch + _LOGITS_ROWS)
    return int(reserve + step + logits + 4 * wanted_context(census, wish) * census["head_dim"])


def fit_cpu(path: str, census: dict[str, Any], wish: Wish) -> Fit:
    """What Engine(device="cpu") would take, by the rules of loading: unless told, the KV cache has
    at most a quarter of what the weights leave."""
    from mmengine.forecast import forecast_cpu

    forecast = forecast_cpu(
        path,
        weight_dtype=wish.weight_dtype,
        kv_dtype=wish.kv_dtype,
        max_context=wish.max_context,
        max_batch=wish.max_batch,
        prefill_chunk=wish.prefill_chunk,
        threads=wish.threads,
        memory_bytes=wish.memory,
    )
    sums = ("resident_bytes", "kv_bytes", "workspace_bytes")
    loads = sum(forecast[name] for name in sums) <= forecast["available_bytes"]
    tokens = forecast["kv_blocks"] * forecast["kv_block_tokens"] if loads else 0
    return Fit(
        weights_bytes=forecast["resident_bytes"],
        draft_bytes=0,
        workspace_bytes=forecast["workspace_bytes"],
        kv_bytes=forecast["kv_bytes"] if loads else 0,
        needed_bytes=forecast["needed_bytes"],
        tokens=tokens,
        context=min(forecast["max_context"], tokens),
        memory=forecast["available_bytes"],
        kv_dtype=forecast["kv_dtype"],
    )
