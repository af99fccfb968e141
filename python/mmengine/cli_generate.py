"""mm-run generate: one prompt streamed to stdout, or a file of prompts answered as a batch.

Options and prompts are checked before the model is opened, so that a mistake costs no load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from typing import TYPE_CHECKING, Any

from mmengine.cli_answer import Answer, Prompt
from mmengine.cli_engine import check_effort
from mmengine.cli_options import check_positional, sampling_params
from mmengine.cli_output import Output, checked_text, note, read_text
from mmengine.errors import RequestError, UsageError
from mmengine.messages import quoted
from mmengine.synthetic import refuse_text

if TYPE_CHECKING:
    from mmengine.cli_engine import OpenEngine
    from mmengine.engine import Engine
    from mmengine.sampling import SamplingParams


def run(args: argparse.Namespace, open_engine: OpenEngine, output: Output) -> None:
    """Runs the verb; every failure is an mmengine Error or an OSError of stdout."""
    check_positional(args)
    if args.raw and args.system is not None:
        raise UsageError("--system: needs the chat format, which --raw switches off")
    if args.raw and args.reasoning_effort is not None:
        raise UsageError("--reasoning-effort: needs the chat format, which --raw switches off")
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs: is printed with --json only; add --json")
    params = sampling_params(args, args.seed)
    prompts, places = _read_prompts(args)
    _refuse_text(args, prompts, places)
    with open_engine(args) as engine:
        if args.reasoning_effort is not None:
            check_effort(engine, args.reasoning_effort, "--reasoning-effort")
        ready = [_formatted(engine, prompt, args) for prompt in prompts]
        if args.prompts is None:
            _stream(engine, ready[0], params, args, output)
        else:
            try:
                _batch(engine, ready, params, args, output)
            except RequestError as error:
                raise _at_line(error, places) from error


def _refuse_text(args: argparse.Namespace, prompts: list[Prompt], places: list[str]) -> None:
    """UsageError where a synthetic model would need a tokenizer, before its weights are made."""
    for prompt, place in zip(prompts, places, strict=True):
        if isinstance(prompt, str) or isinstance(prompt[0], dict):
            refuse_text(args.model, place)
    for name in ("stop", "json_schema", "regex", "grammar", "reasoning_effort"):
        if getattr(args, name) not in (None, []):
            refuse_text(args.model, f"--{name.replace('_', '-')}")


def _stream(
    engine: Engine, prompt: Prompt, params: SamplingParams, args: argparse.Namespace, output: Output
) -> None:
    answer = Answer()
    try:
        shown = None if args.json else output
        answer.run(engine, prompt, params, shown, args.reasoning_effort)
    except KeyboardInterrupt:
        _finish(answer, args, output)
        raise
    except BrokenPipeError:
        raise
    except BaseException:
        output.end_line()
        raise
    _finish(answer, args, output)
    if args.stats:
        note(answer.summary(engine))


def _finish(answer: Answer, args: argparse.Namespace, output: Output) -> None:
    if args.json:
        output.write_json(answer.as_json())
    elif not answer.text:
        output.write("\n")
        answer.note_rest()
    else:
        output.end_line()
        answer.note_rest()


def _batch(
    engine: Engine,
    prompts: list[Prompt],
    params: SamplingParams,
    args: argparse.Namespace,
    output: Output,
) -> None:
    started_at = time.monotonic()
    if args.reasoning_effort is None:
        completions = engine.generate(prompts, params)
    else:
        completions = engine.generate(prompts, params, reasoning_effort=args.reasoning_effort)
    total_s = time.monotonic() - started_at
    for index, done in enumerate(completions):
        if args.json:
            fields = {
                "text": done.text,
                "reasoning": done.reasoning,
                "tool_calls": [call.to_dict() for call in done.tool_calls],
                "token_ids": done.token_ids,
                "finish_reason": done.finish_reason,
                "logprobs": done.logprobs,
                "usage": done.usage,
                "timings": {**Answer().timings(), "total_s": total_s},
            }
            output.write_json(fields)
            continue
        text = done.text
        if engine.tokenizer is None:
            text = " ".join(str(token) for token in done.token_ids)
        output.write("\n" if index else "")
        output.write_text(text if text.endswith("\n") else text + "\n")
    if args.stats:
        usages = [dataclasses.asdict(done.usage) for done in completions]
        prompt_tokens = sum(usage["prompt_tokens"] for usage in usages)
        generated = sum(usage["completion_tokens"] for usage in usages)
        note(
            f"{len(prompts)} prompts, {prompt_tokens} tokens | generated {generated} tokens in "
            f"{total_s:.2f} s, {generated / max(total_s, 1e-9):.1f} tok/s | "
            f"{engine.weight_dtype} weights | {engine.description}"
        )


def _at_line(error: RequestError, places: list[str]) -> RequestError:
    """The same error, naming the line instead of prompts[i]."""
    where = error.where or ""
    index = re.fullmatch(r"prompts\[(\d+)\]", where)
    if index is None:
        return error
    place, text = places[int(index[1])], str(error).removeprefix(f"{where}: ")
    return RequestError(f"{place}: {text}", where=place, param=error.param, code=error.code)


def _read_prompts(args: argparse.Namespace) -> tuple[list[Prompt], list[str]]:
    """The prompts, and where each of them stands."""
    if args.prompts is not None:
        text = read_text(args.prompts, "--prompts")
        prompts, places = _parse_prompts(text, args.prompts)
        if not prompts:
            raise RequestError(f"--prompts: {quoted(args.prompts)} is empty", param="prompt")
        return prompts, places
    if args.prompt is not None:
        prompt = checked_text(args.prompt, "-p")
        where = "-p"
    elif args.file is not None or args.stdin is not None:
        where = "-f" if args.file is not None else "-"
        prompt = read_text(args.file or "-", where)
        # The newline that ends a text file is not meant as part of the prompt.
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    else:
        raise UsageError("no prompt; give -p TEXT, -f FILE, --prompts FILE or - for stdin")
    if not prompt:
        raise RequestError(f"{where}: the prompt is empty", param="prompt")
    return [prompt], [where]


def _parse_prompts(text: str, name: str) -> tuple[list[Prompt], list[str]]:
    lines = [(number, line.strip("\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    places = [f"--prompts: {quoted(name)} line {number}" for number, _ in lines]
    texts = [line for _, line in lines]
    if not name.endswith(".jsonl"):
        return list(texts), places
    return list(map(_parse_json_prompt, texts, places)), places


def _parse_json_prompt(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not valid JSON: {error}", param="prompt") from error
    if isinstance(value, dict) and len(value) == 1:
        messages = value.get("messages")
        if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            return messages
        value = value.get("prompt")
    if isinstance(value, str) and value:
        return checked_text(value, where)
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    raise RequestError(
        f'{where}: expected a text, a list of token ids, {{"prompt": ...}} or '
        f'{{"messages": [...]}}, got {quoted(line)}',
        param="prompt",
    )


def _formatted(engine: Engine, prompt: Prompt, args: argparse.Namespace) -> Prompt:
    if not isinstance(prompt, str):
        return prompt
    if engine.tokenizer is None:
        raise UsageError(
            f"{engine.model_name}: has no tokenizer, so it takes token ids, not text; "
            "give lists of ids with --prompts FILE.jsonl"
        )
    if args.raw or engine.chat_format is None:
        if args.system is not None:
            raise UsageError(f"--system: {engine.model_name} has no chat format")
        return prompt
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": checked_text(args.system, "--system")})
    return messages
