"""The parser of mm-run: verbs, options, and how parsed options become Engine and sampling options.

A bad flag is a UsageError in one sentence, never argparse's usage dump. Options that config.toml
or the environment may set are None when the user did not type them, until `fill` completes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from mmengine.cli_output import read_text
from mmengine.cli_plan import PLAN_SETTINGS
from mmengine.cli_plan import add_options as add_plan_options
from mmengine.errors import UsageError
from mmengine.messages import quoted
from mmengine.settings import ENGINE_SETTINGS, MODEL, SAMPLING_SETTINGS, Setting, Value

if TYPE_CHECKING:
    from mmengine.sampling import SamplingParams

_EPILOG = """\
Options may also be set in ~/.config/mmengine/config.toml (top_p = 0.9) or in the environment
(MMENGINE_TOP_P=0.9). Results go to stdout, everything else to stderr.
"""

_EXIT_CODES = """\
Exit codes: 0 done, 64 bad option or request, 65 malformed model, 66 not found, 69 unsupported
model or device, 70 internal error, 71 out of memory, 74 cannot write, 75 overloaded,
130 interrupted (Ctrl-C), 141 the reader of stdout left, 143 terminated.
"""

# Options that later versions have: a user who read about them learns what is the matter.
_UNSUPPORTED = ("--image", "--draft")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.strip()}; see {self.prog} -h")


def _typed(setting: Setting) -> Callable[[str], Value]:
    return lambda text: setting.parse(text, setting.flag)


def _add_settings(parser: argparse.ArgumentParser, settings: tuple[Setting, ...]) -> None:
    for setting in settings:
        if setting.kind is bool:
            parser_action = argparse.BooleanOptionalAction
            parser.add_argument(setting.flag, action=parser_action, help=setting.help)
        else:
            metavar = "|".join(setting.choices) or {str: "NAME", int: "N"}.get(setting.kind, "X")
            parser.add_argument(
                *setting.flags, dest=setting.name, type=_typed(setting), metavar=metavar,
                help=setting.help,
            )  # fmt: skip


def _count(flag: str, minimum: int = 1) -> Callable[[str], Value]:
    setting = Setting(flag.lstrip("-").replace("-", "_"), int, "", minimum=minimum)
    return lambda text: setting.parse(text, flag)


def _counts(flag: str) -> Callable[[str], list[int]]:
    one = _count(flag)
    return lambda text: [int(one(part)) for part in text.split(",")]


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", type=_typed(MODEL), metavar="MODEL", help=MODEL.help)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser, SAMPLING_SETTINGS)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )


def _add_form(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json-schema", metavar="FILE", help="the answer is JSON that this schema allows"
    )
    form.add_argument(
        "--regex", metavar="PATTERN", help="the answer matches this regular expression whole"
    )
    form.add_argument("--grammar", metavar="FILE", help="the answer is text of this Lark grammar")


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reasoning-effort", metavar="none|high",
        help="whether the model thinks before it answers, where it can (default: its own)",
    )  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; parsed options carry `verb`, or None where none was typed."""
    debug = _Parser(add_help=False)
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    root = _Parser(
        prog="mm-run",
        description="Runs Mistral and Llama models on this machine.",
        epilog=_EPILOG + "\n" + _EXIT_CODES,
        parents=[debug],
    )
    root.add_argument("--version", action="version", version=f"mm-run {package_version()}")
    verbs = root.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, summary: str, engine: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".",
            epilog=_EPILOG, parents=[debug],
        )  # fmt: skip
        if engine:
            _add_model(parser)
            _add_settings(parser, ENGINE_SETTINGS)
        return parser

    generate = verb("generate", "answer one prompt, or a file of prompts")
    _add_generate(generate)
    chat = verb("chat", "talk with the model; /help lists the commands")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    _add_effort(chat)
    _add_sampling(chat)
    convert = verb("convert", "make an engine directory from a checkpoint", engine=False)
    convert.add_argument("source", help="GGUF file, HF or Mistral checkpoint directory")
    convert.add_argument(
        "destination", nargs="?", help="new directory (default: beside the source)"
    )
    convert.add_argument(
        "--weight-dtype", dest="target_dtype", choices=("bf16", "f32", "fp8", "int8", "int4"),
        default="bf16",
        help="type of the stored weights (default bf16); GGUF's Q4_1 is int4 and Q8_0 int8 without "
        "loss",
    )  # fmt: skip
    convert.add_argument("--force", action="store_true", help="replace an existing destination")
    fetch = verb("fetch", "download a model into the cache", engine=False)
    fetch.add_argument("model", nargs="?", type=_typed(MODEL), help=MODEL.help)
    inspect = verb("inspect", "show what a checkpoint holds", engine=False)
    _add_model(inspect)
    _add_json(inspect, "one JSON object")
    plan = verb("plan", "say how much memory a model needs and what fits", engine=False)
    _add_model(plan)
    _add_settings(plan, PLAN_SETTINGS)
    add_plan_options(plan)
    verify = verb("verify", "check that a copy of a model is whole and undamaged", engine=False)
    _add_model(verify)
    _add_json(verify, "one JSON object")
    _add_perplexity(verb("perplexity", "measure the perplexity of a text"))
    _add_bench(verb("bench", "measure prefill and decode speed"))
    return root


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed `arguments`; UsageError naming the option that is unknown or not supported."""
    first = next((word for word in arguments if word != "--debug"), "")
    for word in arguments:
        if word == "--":
            break
        name = word.partition("=")[0]
        if name in _UNSUPPORTED and (first, name) != ("plan", "--draft"):
            raise UsageError(f"{name}: not supported by this version")
    if first.startswith("-") and first not in ("-", "--", "-h", "--help", "--version"):
        # Its value would be taken for the verb.
        raise UsageError(f"unknown option {quoted(first)} before the verb; see {parser.prog} -h")
    args, rest = parser.parse_known_args(arguments)
    if rest:
        option = next((word for word in rest if word.startswith("-") and word != "-"), None)
        what = f"unexpected argument {quoted(rest[0])}"
        if option is not None:
            what = f"unknown option {quoted(option.partition('=')[0])}"
        raise UsageError(f"{what}; see {parser.prog} {args.verb or ''}".rstrip() + " -h")
    return args


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    source.add_argument("-f", "--file", metavar="FILE", help="file with one prompt; - is stdin")
    source.add_argument(
        "--prompts", metavar="FILE",
        help="many prompts, answered as a batch: one a line, or .jsonl with texts, lists of token "
        "ids, or objects with prompt or messages",
    )  # fmt: skip
    # Outside the group: the value of an unknown option would be blamed instead of the option.
    parser.add_argument("stdin", nargs="?", metavar="-", help="read the prompt from stdin")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--raw", action="store_true", help="no chat format around the prompt")
    _add_effort(parser)
    _add_sampling(parser)
    _add_form(parser)
    parser.add_argument(
        "--logprobs", type=_typed(Setting("logprobs", int, "")), metavar="N",
        help="with --json: log-probabilities of the chosen token and N alternatives",
    )  # fmt: skip
    _add_json(parser, "one JSON object per completion")
    parser.add_argument("--stats", action="store_true", help="closing line of speed figures")


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - is stdin")
    parser.add_argument(
        "--max-tokens", dest="text_tokens", type=_count("--max-tokens", 2), metavar="N",
        help="only the first N tokens",
    )  # fmt: skip
    parser.add_argument(
        "--stride", type=_count("--stride"), metavar="N",
        help="slide a window of --max-context tokens by N; each token is scored once",
    )  # fmt: skip
    _add_json(parser, "one JSON object")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    for flag, default, what in (
        ("--prompt-tokens", [512], "prompt lengths, separated by commas (default 512)"),
        ("--batch", [1, 4, 16], "sequences at once, separated by commas (default 1,4,16)"),
    ):
        parser.add_argument(flag, type=_counts(flag), default=default, metavar="N,N", help=what)
    for flag, number, what in (
        ("--gen-tokens", 128, "decode steps (default 128)"),
        ("--repeat", 5, "runs of each, fewer where they are long; the median counts (default 5)"),
    ):
        parser.add_argument(flag, type=_count(flag), default=number, metavar="N", help=what)
    parser.add_argument(
        "--plot", metavar="FILE.png",
        help="also draw a roofline picture (needs matplotlib, the extra plot)",
    )  # fmt: skip
    _add_json(parser, "one JSON object")


def fill(args: argparse.Namespace, values: Mapping[str, Value]) -> None:
    """Completes options that were not typed from `values`, and the model by the demo model."""
    for name, value in values.items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)
    if getattr(args, "model", "") is None:
        args.model = "smollm2"


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The Engine arguments that were set somewhere; the others keep the Engine's defaults."""
    values = {s.name: getattr(args, s.name, None) for s in ENGINE_SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


def sampling_params(args: argparse.Namespace, seed: int | None) -> SamplingParams:
    """The SamplingParams of the options, files read; RequestError for a value out of range."""
    from mmengine.sampling import SamplingParams

    schema, grammar = (
        None if file is None else read_text(file, flag)
        for file, flag in (
            (getattr(args, "json_schema", None), "--json-schema"),
            (getattr(args, "grammar", None), "--grammar"),
        )
    )
    options = {
        "max_tokens": args.max_tokens,
        "temperature": args.temp,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "repetition_penalty": args.repetition_penalty,
        "seed": seed,
        "logprobs": getattr(args, "logprobs", None),
        "stop": tuple(args.stop) or None,
        "json_schema": schema,
        "regex": getattr(args, "regex", None),
        "grammar": grammar,
    }
    return SamplingParams(**{name: value for name, value in options.items() if value is not None})


def package_version() -> str:
    """The version of the installed package, or "unknown" when it runs from a source tree."""
    try:
        return version("mmengine")
    except PackageNotFoundError:
        return "unknown"


def check_positional(args: argparse.Namespace) -> None:
    """UsageError if the one positional argument of generate is not "-", or one prompt too many."""
    if args.stdin not in (None, "-"):
        raise UsageError(
            f"unexpected argument {quoted(args.stdin)}, expected -; give a prompt with -p TEXT"
        )
    if args.stdin is not None:
        for flag, value in (("-p", args.prompt), ("-f", args.file), ("--prompts", args.prompts)):
            if value is not None:
                raise UsageError(f"-: not allowed with {flag}; give one prompt")
