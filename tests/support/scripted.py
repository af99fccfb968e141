"""An Engine whose tokens are given by the test: all but the transformer is the real thing.

The model directory, the tokenizer, the chat format, the driver and its thread are real; the core
takes requests and answers each with the ids of a script, any number of them per step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from make_tekken import make_tekken
from make_tiny_model import make_tiny_model

import mmengine
from mmengine import engine as engine_module

SPECIALS, VOCAB = 40, 2040


def make_mistral(directory: Path, version: str = "v15", **options: Any) -> Path:
    """A tiny random model in the Mistral layout with a small tekken.json of real words."""
    make_tiny_model(directory, layout="mistral", vocab=VOCAB, **options)
    make_tekken(directory / "tekken.json", version, VOCAB, SPECIALS)
    return directory


@dataclass
class _Running:
    id: int
    prompt_tokens: int
    answer: list[int]
    params: Any
    given: int = 0


@dataclass
class ScriptedCore:
    """In the place of _core.Engine. `submitted`: (ids, params) of every request."""

    real: Any
    script: Callable[[list[int]], Sequence[int]]
    steps: Callable[[], int]  # how many ids the next step gives a request
    submitted: list[tuple[list[int], Any]] = field(default_factory=list)
    running: list[_Running] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    ids: Any = field(default_factory=itertools.count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def submit(
        self, token_ids: list[int], params: Any, logits: bool = False, **options: Any
    ) -> int:
        assert not logits
        self.submitted.append((token_ids, params))
        request = _Running(next(self.ids), len(token_ids), list(self.script(token_ids)), params)
        self.running.append(request)
        return request.id

    def cancel(self, request_id: int) -> None:
        self.ended.add(request_id)

    def finish(self, request_id: int) -> None:
        self.ended.add(request_id)

    def step(self) -> tuple[bool, list[Any]]:
        outputs = []
        for request in list(self.running):
            known = request.id in self.ended  # one more step is under way when a stop is seen
            outputs.append(self._advance(request))
            if known or outputs[-1].finish.name != "running":
                self.running.remove(request)
        return bool(self.running), outputs

    def _advance(self, request: _Running) -> Any:
        limit = request.params.max_tokens
        ends = {*request.params.stop_token_ids}
        if not request.params.ignore_eos:
            ends.add(2)
        token_ids: list[int] = []
        finish = "running"
        for _ in range(self.steps()):
            index = request.answer[request.given] if request.given < len(request.answer) else 2
            token_ids.append(index)
            request.given += 1
            if index in ends:
                finish = "stop"
            elif request.given == limit:
                finish = "length"
            if finish != "running":
                break
        return SimpleNamespace(
            id=request.id,
            token_ids=token_ids,
            logprobs=[],
            prompt_logprobs=[],
            finish=SimpleNamespace(name=finish),
            prompt_tokens=request.prompt_tokens,
            cached_tokens=0,
            completion_tokens=request.given,
            take_logits=lambda: None,
        )


def scripted_engine(
    directory: Path,
    script: Callable[[list[int]], Sequence[int]],
    steps: Callable[[], int] = lambda: 1,
    **options: Any,
) -> tuple[mmengine.Engine, ScriptedCore]:
    """An engine on `directory` whose answers are script(ids of the prompt), and its core."""
    cores: list[ScriptedCore] = []
    load = engine_module.load_core

    def scripted(*args: Any) -> Any:
        cores.append(ScriptedCore(load(*args), script, steps))
        return cores[0]

    with patch.object(engine_module, "load_core", scripted):
        made = mmengine.Engine(directory, **{"device": "cpu", "threads": 1, **options})
    return made, cores[0]
