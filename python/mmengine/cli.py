"""mm-run: parses the command line, runs one verb, and turns every failure into an exit code.

An Error prints as one sentence on stderr with its own exit code; anything else is a bug of ours,
told in one sentence with exit code 70. --debug adds the traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence

from mmengine.cli_engine import EngineFactory, OpenEngine, opener
from mmengine.cli_options import build_parser, fill, parse
from mmengine.cli_output import Output, discard_stdout, note
from mmengine.cli_signals import SignalGuard, Terminated
from mmengine.errors import Error, ResourceError
from mmengine.settings import load_settings

_EXIT_SOFTWARE = 70
_EXIT_SIGINT, _EXIT_SIGPIPE, _EXIT_SIGTERM = 130, 141, 143
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def main(argv: Sequence[str] | None = None, *, engine_factory: EngineFactory | None = None) -> int:
    """Runs mm-run with `argv` (default: the process's) and returns the exit code.

    `engine_factory` replaces mmengine.Engine, for tests.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        # Inside the try: a signal may come while the guard is entered or left.
        with SignalGuard() as guard:
            return _run(arguments, engine_factory, guard)
    except BrokenPipeError:
        discard_stdout()
        return _EXIT_SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        signal = _signal_behind(error)
        return _report(error, debug) if signal is None else _report_signal(signal)


def _signal_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """What a signal raised, if `error` comes of it: an extension module that is interrupted while
    it is imported raises ImportError from it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error


def _report_signal(signal: KeyboardInterrupt) -> int:
    terminated = isinstance(signal, Terminated)
    note("mm-run: terminated" if terminated else "mm-run: interrupted", style="red")
    return _EXIT_SIGTERM if terminated else _EXIT_SIGINT


def _run(arguments: list[str], factory: EngineFactory | None, guard: SignalGuard) -> int:
    output = Output()
    parser = build_parser()
    try:
        args = parse(parser, arguments)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    if args.verb is None:
        output.write(parser.format_help())
        return 0
    if getattr(args, "debug", False):
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    fill(args, load_settings(os.environ))
    _verb(args, opener(factory), output, guard)
    return 0


def _verb(
    args: argparse.Namespace, open_engine: OpenEngine, output: Output, guard: SignalGuard
) -> None:
    """Runs the verb; its module is imported here, so that --help imports none of them."""
    if args.verb == "generate":
        from mmengine import cli_generate

        cli_generate.run(args, open_engine, output)
    elif args.verb == "chat":
        from mmengine import cli_chat

        cli_chat.run(args, open_engine, output, guard)
    elif args.verb in ("perplexity", "bench"):
        from mmengine import cli_measure

        verb = cli_measure.run_perplexity if args.verb == "perplexity" else cli_measure.run_bench
        verb(args, open_engine, output)
    else:
        from mmengine import cli_models, cli_plan, cli_verify

        verbs = {
            "convert": cli_models.run_convert,
            "fetch": cli_models.run_fetch,
            "inspect": cli_models.run_inspect,
            "plan": cli_plan.run_plan,
            "verify": cli_verify.run_verify,
        }
        verbs[args.verb](args, output)


def _report(error: BaseException, debug: bool) -> int:
    if debug:
        note("".join(traceback.format_exception(error)).rstrip(), style="")
    if isinstance(error, Error):
        message, code = str(error), error.exit_code
    elif isinstance(error, MemoryError):
        message = "not enough memory; choose a smaller --max-context, --max-batch or model"
        code = ResourceError.exit_code
    else:
        detail = _ADDRESS.sub("0x...", " ".join(str(error).split()))
        message = f"unexpected {type(error).__name__}: {detail}; run again with --debug"
        code = _EXIT_SOFTWARE
    note(f"mm-run: {message}", style="red")
    return code
