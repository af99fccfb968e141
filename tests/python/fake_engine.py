"""An engine without a model, for the tests of the command line: it answers by fixed rules.

A token is a byte; the answer spells "echo: " and the last prompt in upper case. Words in the
prompt make it misbehave: see `_misbehave`. The model "thinker" thinks "hm <b>\n" first when asked
to, for ever at a prompt that "ponders", and calls a tool at one that "calls".
"""

import os
import signal
import time
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from mmengine.errors import EngineDeadError, ModelNotFoundError, RequestError
from mmengine.outputs import Completion, Delta, ToolCallDelta, Usage, join_tool_calls

VOCAB = 256


class FakeTokenizer:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class FakeEngine:
    opened: ClassVar = []  # (model, options) of every engine made
    closed = 0

    def __init__(self, model="smollm2", **options):
        if model == "missing":
            raise ModelNotFoundError('model: "missing" is not known')
        if model == "broken":
            raise ValueError("secret at 0x7fea55b68950\nsecond line")
        if model == "huge":
            raise MemoryError
        type(self).opened.append((model, options))
        self.model_name = model
        self.tokenizer = None if model == "ids-only" else FakeTokenizer()
        efforts = ("none", "high") if model == "thinker" else ()
        self.chat_format = None
        if model not in ("ids-only", "base"):
            self.chat_format = SimpleNamespace(efforts=efforts)
        self.max_context = options.get("max_context", 2048)
        self.vocab_size = VOCAB
        self.weight_dtype = "bf16"
        self.threads = options.get("threads", 2)
        self.description = f"cpu, fake, {self.threads} threads"
        self.warnings = ["a warning"] if model == "warns" else []
        self.prompts = []
        self.params = []
        self.efforts = []
        self.asked = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        type(self).closed += 1

    def stream(self, prompt, params, reasoning_effort=None):
        self.prompts.append(prompt)
        self.params.append(params)
        self.efforts.append(reasoning_effort)
        text, size = _last_text(prompt)
        if size > self.max_context:
            raise RequestError(f"prompt: has {size} tokens, more than {self.max_context}")
        answer = f"echo: {text.upper()}".encode() if text else bytes(range(65, 91)) * 100
        if reasoning_effort == "high":
            yield Delta(text="", token_ids=[34], reasoning="hm <b>")
            yield Delta(text="", token_ids=[35], reasoning="\x1b[1mm\n")
        if "ponders" in text:
            usage = Usage(size, 3, reasoning_tokens=3)
            yield Delta(text="", token_ids=[1], finish_reason="length", usage=usage)
            return
        if "calls" in text:
            calls = [ToolCallDelta(0, '{"a": 1}', "abcdefghi", "f")]
            yield Delta("", [9], finish_reason="tool_calls", usage=Usage(size, 1), tool_calls=calls)
            return
        count = min(params.max_tokens or len(answer), len(answer))
        for index in range(count):
            _misbehave(text, index)
            last = index == count - 1
            yield Delta(
                text=chr(answer[index]) if answer[index] < 128 else "",
                token_ids=[answer[index]],
                finish_reason=("length" if count < len(answer) else "stop") if last else None,
                usage=Usage(prompt_tokens=size, completion_tokens=count) if last else None,
            )

    def generate(self, prompts, params, **options):
        return [self._complete(prompt, params, options) for prompt in prompts]

    def _complete(self, prompt, params, options):
        deltas = list(self.stream(prompt, params, **options))
        return Completion(
            text="".join(delta.text for delta in deltas),
            token_ids=[token for delta in deltas for token in delta.token_ids],
            finish_reason=deltas[-1].finish_reason,
            usage=deltas[-1].usage,
            prompt_token_ids=[],
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=join_tool_calls(call for delta in deltas for call in delta.tool_calls),
        )

    def logits_blocks(self, ids):
        rows = self.logits(ids)
        for begin in range(0, len(rows), 7):
            yield rows[begin : begin + 7]

    def logits(self, ids):
        """Row i is a function of the ids up to i, so that it shows which context was given."""
        seen = np.cumsum(np.asarray(ids, dtype=np.float64))[:, None]
        rows = np.sin(seen * 0.37 + np.arange(VOCAB)[None, :] * 0.11) * 3
        return rows.astype(np.float32)

    def plan(self):
        return SimpleNamespace(
            weights_bytes=2_000_000,
            bytes_per_token=1_000_000,
            flops_per_token=300_000,
            flops_per_logits_row=100_000,
            flops_per_position=400,
            kv_bytes_per_token={"f32": 200, "bf16": 100},
            kv_dtype="bf16",
        )

    def measure_read_bandwidth(self):
        return 1e9

    def measure_multiply_peak(self):
        return 2e9

    def measure_int8_peak(self):
        return 8e9

    def stats(self):
        """Of an engine that made as many steps as it was asked, 2 + 8 ms each."""
        self.asked += 1
        return SimpleNamespace(
            steps=self.asked,
            seconds_scheduling=0.002 * self.asked,
            seconds_computing=0.008 * self.asked,
        )


def _last_text(prompt):
    if isinstance(prompt, str):
        return prompt, len(prompt)
    if isinstance(prompt[0], int):
        return "", len(prompt)
    return prompt[-1]["content"], sum(len(message["content"] or "") for message in prompt)


def _misbehave(text, index):
    if "dies" in text and index == 3:
        raise EngineDeadError("engine: failed in step 3")
    if "interrupts" in text and index == 8:
        os.kill(os.getpid(), signal.SIGINT)
    if "slow" in text:
        time.sleep(0.05)
    if "stuck" in text and index == 3:
        _hold_the_main_thread()


def _hold_the_main_thread():
    """Like a step of the core that does not end: no signal handler of Python can run."""
    import ctypes

    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)  # zeros are an unlocked mutex
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
