"""A model under a wish and its variations: what fits, on how many devices, and what would help.

The sums are those of plan_memory; the model is read once, and its census taken again where another
weight format is tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmengine.errors import UsageError
from mmengine.plan_memory import Fit, Wish, fit_cpu, fit_gpu
from mmengine.sizes import gib


class Planner:
    """One model, its draft head, and what fits of them under a wish and its variations."""

    def __init__(self, model: str, draft: str | None, wish: Wish) -> None:
        from mmengine.cache import config_path

        self.model, self.wish = model, wish
        self.path = str(config_path(model))
        self.draft_path = None if draft is None else str(config_path(draft))
        self.census = self._census(wish)
        self.draft = self._draft(wish)
        self._check()

    def _census(self, wish: Wish) -> dict[str, Any]:
        from mmengine.forecast import census

        dtype = wish.weight_dtype if wish.device == "cuda" else "auto"
        return census(self.path, dtype, wish.text_only)

    def _draft(self, wish: Wish) -> dict[str, Any] | None:
        from mmengine.forecast import census

        if self.draft_path is None:
            return None
        return census(self.draft_path, wish.weight_dtype, draft=True)

    def _check(self) -> None:
        most = self.census["max_context"]
        asked = self.wish.max_context
        if asked is not None and asked > most:
            raise UsageError(
                f"max_context: expected at most the model's {most}, got {asked}",
                where="max_context",
            )
        for name in ("hidden_size", "head_dim"):
            if self.draft is not None and self.draft[name] != self.census[name]:
                raise UsageError(
                    f"draft: {name} is {self.draft[name]}, expected the model's "
                    f"{self.census[name]}; it is the head of another model",
                    where="draft",
                )
        if problem := self._undividable(self.wish.devices):
            raise UsageError(problem, where="devices")

    def _undividable(self, devices: int) -> str:
        """Why so many devices cannot share this model, or ""."""
        heads = self.census["num_kv_heads"]
        if devices > heads:
            return (
                f"devices: expected at most {heads}, because the model has {heads} KV heads and "
                f"each device needs one of its own, got {devices}"
            )
        for name in ("num_kv_heads", "num_heads"):
            if self.census[name] % devices:
                return (
                    f"devices: expected a divisor of the model's {name} = {self.census[name]}, "
                    f"got {devices}"
                )
        return ""

    def fit(self, **changes: Any) -> Fit:
        """What fits when the wish is changed."""
        wish = replace(self.wish, **changes)
        if wish.device == "cpu":
            return fit_cpu(self.path, self.census, wish)
        same = wish.weight_dtype == self.wish.weight_dtype and (
            wish.text_only == self.wish.text_only
        )
        if same:
            return fit_gpu(self.census, self.draft, wish)
        return fit_gpu(self._census(wish), self._draft(wish), wish)

    def device_counts(self, wanted: int) -> list[dict[str, Any]]:
        """A row for each number of GPUs that can share the model; [] without a memory to plan."""
        if self.wish.memory is None or not self._on_gpu():
            return []
        rows = []
        for devices in self._possible_devices():
            fits = {kv: self.fit(devices=devices, kv_dtype=kv) for kv in ("fp8", "bf16")}
            tokens = {kv: fit.tokens or 0 for kv, fit in fits.items()}
            rows.append(
                {
                    "devices": devices,
                    "weights_bytes_per_device": fits["fp8"].weights_bytes,
                    "kv_tokens": tokens,
                    "sequences": {kv: count // wanted for kv, count in tokens.items()},
                }
            )
        return rows

    def _possible_devices(self) -> list[int]:
        most = self.census["num_kv_heads"]
        counts = {1, 2, 4, 8, self.wish.devices}
        return sorted(n for n in counts if n <= most and not self._undividable(n))

    # ---- advice ------------------------------------------------------------------------------

    def advice(self, fit: Fit, wanted: int) -> str:
        """One sentence on what to change where `wanted` tokens do not fit, else ""."""
        if fit.context >= wanted or fit.memory is None:
            return ""
        remedies = [*self._cheap(fit, wanted), *self._devices(fit, wanted), *self._narrow(wanted)]
        if fit.context:
            remedies.append(f"max_context {fit.context}")
        elif not any("(" not in remedy for remedy in remedies):
            remedies.append(f"a device of {gib(fit.needed_bytes)}")
        each = " on each device" if self.wish.devices > 1 else ""
        if not fit.context:
            bare = fit.weights_bytes + fit.draft_bytes + fit.workspace_bytes
            each += f" ({gib(bare)} without a KV cache)"
        return (
            f"A context of {wanted:,} tokens needs {gib(fit.needed_bytes)}{each}, and "
            f"{gib(fit.memory)} are there: use {', or '.join(remedies)}."
        )

    def _cheap(self, fit: Fit, wanted: int) -> list[str]:
        """The options that cost least, taken together until it fits; [] when none gains."""
        changes: dict[str, Any] = {}
        words: dict[str, str] = {}  # by what they change: the narrowest kv_dtype stands for all
        best = fit
        for word, change, possible in (
            ("kv_dtype bf16", {"kv_dtype": "bf16"}, fit.kv_dtype == "f32"),
            ("kv_dtype fp8", {"kv_dtype": "fp8"}, fit.kv_dtype != "fp8"),
            ("text_only", {"text_only": True}, self._has_vision()),
            ("no draft", {"use_draft": False}, self.draft is not None),
        ):
            if not possible or best.context >= wanted:
                continue
            changes |= change
            better = self.fit(**changes)
            if better.context > best.context:
                words |= dict.fromkeys(change, word)
                best = better
        return [" and ".join(words.values()) + _gain(best, wanted)] if words else []

    def _devices(self, fit: Fit, wanted: int) -> list[str]:
        """The least number of devices that is enough, else the most that can share the model."""
        if not self._on_gpu():
            return []
        counts = [n for n in self._possible_devices() if n > self.wish.devices]
        fits = {n: self.fit(devices=n) for n in counts}
        enough = next((n for n in counts if fits[n].context >= wanted), None)
        chosen = enough or (counts[-1] if counts else None)
        if chosen is None or fits[chosen].context <= fit.context:
            return []
        return [f"devices {chosen}" + _gain(fits[chosen], wanted)]

    def _narrow(self, wanted: int) -> list[str]:
        """Narrower weights: the widest that are enough, else the narrowest if they gain."""
        now = self.fit().context
        fits = {dtype: self.fit(weight_dtype=dtype) for dtype in self._narrow_dtypes()}
        enough = next((dtype for dtype, fit in fits.items() if fit.context >= wanted), None)
        chosen = enough or "int4"
        if chosen not in fits or fits[chosen].context <= now:
            return []
        return [f"weight_dtype {chosen}" + _gain(fits[chosen], wanted)]

    def _narrow_dtypes(self) -> list[str]:
        dtypes = ("int4",) if self._on_gpu() else ("fp8", "int4")
        return [dtype for dtype in dtypes if dtype != self.wish.weight_dtype]

    def _on_gpu(self) -> bool:
        return self.wish.device == "cuda"

    def _has_vision(self) -> bool:
        return self.census["vision_patches"] > 0 and not self.wish.text_only


def _gain(fit: Fit, wanted: int) -> str:
    return "" if fit.context >= wanted else f" (up to {fit.context:,} tokens)"
