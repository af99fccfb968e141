"""One streamed answer: its pieces in order, and the times that the figures of --stats come from.

An answer stays readable when the stream is interrupted: what arrived is kept, and its finish
reason is then "cancelled". Its text goes to stdout, its thought to the terminal behind stderr.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmengine.cli_output import Output, Thoughts, note
from mmengine.messages import quoted
from mmengine.outputs import ToolCall, ToolCallDelta, join_tool_calls

if TYPE_CHECKING:
    from mmengine.engine import Engine
    from mmengine.outputs import Usage
    from mmengine.sampling import SamplingParams

Prompt = str | list[int] | list[dict[str, Any]]


@dataclass
class Answer:
    """What arrived so far. Times are seconds of the monotonic clock."""

    text: str = ""
    reasoning: str = ""
    call_deltas: list[ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str = "cancelled"
    usage: Usage | None = None
    started_at: float = 0.0
    first_at: float | None = None
    ended_at: float = 0.0

    def run(
        self,
        engine: Engine,
        prompt: Prompt,
        params: SamplingParams,
        output: Output | None,
        effort: str | None = None,
    ) -> None:
        """Streams the answer to `prompt` to `output`; None shows nothing of it."""
        self.started_at = self.ended_at = time.monotonic()
        if effort is None:
            stream = engine.stream(prompt, params)
        else:
            stream = engine.stream(prompt, params, reasoning_effort=effort)
        thoughts = Thoughts()
        try:
            for delta in stream:
                # A reader that starts late finds tokens waiting: theirs are the times that count.
                self.ended_at = time.monotonic() if delta.made_at is None else delta.made_at
                if self.first_at is None and delta.token_ids:
                    self.first_at = self.ended_at
                self.text += delta.text
                self.reasoning += delta.reasoning
                self.call_deltas.extend(delta.tool_calls)
                self.token_ids.extend(delta.token_ids)
                self.logprobs.extend(delta.logprobs or ())
                self.usage = delta.usage or self.usage
                self.finish_reason = delta.finish_reason or self.finish_reason
                if output is not None:
                    thoughts.write(delta.reasoning)
                    if delta.text:
                        thoughts.end()
                        output.write_text(delta.text)
        finally:
            thoughts.end()
            close = getattr(stream, "close", None)
            if close is not None:  # cancels the request; a plain iterator has none
                close()

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls that arrived."""
        return join_tool_calls(self.call_deltas)

    def note_rest(self) -> None:
        """Tells what an answer holds besides its text, or why it has none."""
        for call in self.tool_calls:
            note(f"the model calls {quoted(call.name)} with {quoted(call.arguments)}")
        if self.reasoning and not self.text and self.finish_reason == "length":
            note("no answer: the thought used all tokens; allow more with -n or --max-context")

    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens computed (not found in the prefix cache) by the time to the first token."""
        if self.first_at is None or self.usage is None or self.first_at <= self.started_at:
            return None
        computed = self.usage.prompt_tokens - self.usage.cached_tokens
        return computed / (self.first_at - self.started_at)

    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first by the time since the first; None with fewer than two."""
        if self.first_at is None or self.ended_at <= self.first_at or len(self.token_ids) < 2:
            return None
        return (len(self.token_ids) - 1) / (self.ended_at - self.first_at)

    def timings(self) -> dict[str, float | None]:
        """The figures as JSON has them; None where a figure has no meaning."""
        first = None if self.first_at is None else self.first_at - self.started_at
        return {
            "time_to_first_token_s": first,
            "prefill_tokens_per_s": self.prefill_tokens_per_s(),
            "decode_tokens_per_s": self.decode_tokens_per_s(),
            "total_s": self.ended_at - self.started_at,
        }

    def as_json(self) -> dict[str, Any]:
        """The object of --json; usage is null when the answer was cut off."""
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "logprobs": self.logprobs or None,
            "usage": self.usage,
            "timings": self.timings(),
        }

    def summary(self, engine: Engine) -> str:
        """The closing line of --stats.

        GB/s counts the weights once per decoded token, which is what a step must read at least.
        """
        parts = []
        prefill, decode = self.prefill_tokens_per_s(), self.decode_tokens_per_s()
        if self.usage is not None:
            prompt = f"prompt {self.usage.prompt_tokens} tokens"
            if self.usage.cached_tokens:
                prompt += f" ({self.usage.cached_tokens} cached)"
            parts.append(prompt if prefill is None else f"{prompt}, {prefill:.1f} tok/s")
        if self.first_at is not None:
            parts.append(f"first token {self.first_at - self.started_at:.3f} s")
        generated = f"generated {len(self.token_ids)} tokens"
        if self.usage is not None and self.usage.reasoning_tokens:
            generated += f" ({self.usage.reasoning_tokens} of thought)"
        if decode is not None:
            gbytes_per_s = engine.plan().bytes_per_token * decode / 1e9
            generated += f", {decode:.1f} tok/s, {gbytes_per_s:.1f} GB/s"
        parts += [generated, f"{engine.weight_dtype} weights", engine.description]
        return " | ".join(parts)
