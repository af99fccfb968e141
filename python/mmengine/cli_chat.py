"""mm-run chat: a conversation on the terminal, or line by line from a pipe.

A message is sent with Enter (Alt-Enter breaks the line). Ctrl-C stops an answer and keeps what
came; at the prompt it leaves. A request that fails is told in one sentence and taken back, so the
conversation can go on; a failed /regen leaves the earlier answer. After a tool call the next
message is its result. Answers go to stdout, notices to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from mmengine.cli_answer import Answer
from mmengine.cli_engine import check_effort
from mmengine.cli_options import sampling_params
from mmengine.cli_output import Output, checked_text, note, read_text
from mmengine.cli_signals import SignalGuard, Terminated
from mmengine.errors import Error, OutputError, OverloadedError, RequestError, UsageError
from mmengine.messages import quoted
from mmengine.outputs import assistant_message
from mmengine.settings import xdg_home
from mmengine.synthetic import refuse_text

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from mmengine.cli_engine import OpenEngine
    from mmengine.engine import Engine

HELP = """\
/read FILE      put the text of FILE before the next message
/regen          answer the last message again
/clear          forget the conversation, keep the system message
/system [TEXT]  set the system message; without TEXT the default of the model
/effort [NAME]  set the reasoning effort, or show it
/stats          figures of the last answer
/save FILE      write the conversation as JSON
/help           this list
/exit           leave (also Ctrl-D)"""

ReadLine = Callable[[], str | None]


def run(
    args: argparse.Namespace, open_engine: OpenEngine, output: Output, guard: SignalGuard
) -> None:
    """Runs the verb until the input ends or /exit."""
    refuse_text(args.model, "chat")
    sampling_params(args, args.seed)
    system = None if args.system is None else checked_text(args.system, "--system")
    with open_engine(args) as engine:
        if engine.chat_format is None:
            raise UsageError(
                f"{engine.model_name}: has no chat format that mmengine knows; use mm-run generate"
            )
        interactive = output.terminal and sys.stdin is not None and sys.stdin.isatty()
        if args.reasoning_effort is not None:
            check_effort(engine, args.reasoning_effort, "--reasoning-effort")
        read_line = _terminal_reader() if interactive else _pipe_reader
        if interactive:
            note(f"{engine.model_name}, {engine.description}. /help lists the commands.")
        chat = Chat(engine, args, output, system)
        while (line := read_line()) is not None:
            guard.arm()
            if not chat.handle(line):
                return
    if interactive:
        output.write("\n")


class Chat:
    """The conversation: messages in the OpenAI shape, the system message apart from them."""

    def __init__(
        self, engine: Engine, args: argparse.Namespace, output: Output, system: str | None
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.system = system
        self.effort: str | None = args.reasoning_effort
        self._engine = engine
        self._args = args
        self._output = output
        self._attached: list[str] = []
        self._last: Answer | None = None
        self._saved: set[Path] = set()
        # Every answer draws anew, /regen included, and the whole chat repeats with its seed.
        self._random = None if args.seed is None else random.Random(args.seed)

    def handle(self, line: str) -> bool:
        """Takes one line, command or message; False to leave."""
        try:
            word, _, rest = line.strip().partition(" ")
            if word.startswith("/"):
                return self._command(word, rest.strip())
            text = checked_text(line, "message")
            if text.strip():
                self._add("\n".join([*self._attached, text]))
                self._attached.clear()
                if not self._unanswered():
                    self._answer()
        except (RequestError, OverloadedError) as error:
            note(str(error), style="red")
        return True

    def _command(self, word: str, rest: str) -> bool:
        if word in ("/exit", "/quit"):
            return False
        if word == "/help":
            note(HELP)
        elif word == "/read":
            self._with_file(word, rest, self._read)
        elif word == "/save":
            self._with_file(word, rest, self._save)
        elif word == "/regen":
            self._regenerate()
        elif word == "/clear":
            self.messages.clear()
            self._attached.clear()
            note("conversation forgotten")
        elif word == "/system":
            self.system = checked_text(rest, "/system") if rest else None
            note(f"system message: {self.system or 'the default of the model'}")
        elif word == "/effort":
            self._set_effort(rest)
        elif word == "/image":
            note("/image: this version cannot read images; send text")
        elif word == "/stats":
            note("no answer yet" if self._last is None else self._last.summary(self._engine))
        else:
            note(f"unknown command {quoted(word)}; /help lists the commands")
        return True

    def _set_effort(self, name: str) -> None:
        try:
            if name:
                check_effort(self._engine, name, "/effort")
                self.effort = name
        except UsageError as error:
            note(str(error), style="red")
        else:
            note(f"reasoning effort: {self.effort or 'the default of the model'}")

    def _with_file(self, word: str, name: str, action: Callable[[str], None]) -> None:
        if not name:
            note(f"{word}: expected a file name")
            return
        try:
            action(name)
        except Error as error:
            note(str(error), style="red")

    def _read(self, name: str) -> None:
        if name == "-":
            raise UsageError("/read: stdin holds the conversation; give a file name")
        text = read_text(str(Path(name).expanduser()), "/read")
        self._attached.append(text)
        note(f"{len(text)} characters of {quoted(name)} go before your next message")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise OutputError(f"/save: {quoted(name)} exists; choose another name", where="/save")
        text = json.dumps(self._prompt(), ensure_ascii=False, indent=2) + "\n"
        write_whole(path, text)
        self._saved.add(path.resolve())
        note(f"{len(self.messages)} messages saved to {quoted(name)}")

    def _add(self, text: str) -> None:
        """Adds what the user wrote: the result of the first tool call that waits, or a message."""
        waiting = self._unanswered()
        if waiting:
            message = {"role": "tool", "tool_call_id": waiting[0]["id"], "content": text}
        else:
            message = {"role": "user", "content": text}
        self.messages.append(message)

    def _unanswered(self) -> list[dict[str, Any]]:
        """The calls of the last answer whose results are not there."""
        results = 0
        while results < len(self.messages) and self.messages[-1 - results]["role"] == "tool":
            results += 1
        last = self.messages[-1 - results] if results < len(self.messages) else {}
        calls: list[dict[str, Any]] = last.get("tool_calls", [])
        return calls[results:]

    def _regenerate(self) -> None:
        earlier: dict[str, Any] | None = None
        if self.messages and self.messages[-1]["role"] == "assistant":
            earlier = self.messages.pop()
        if not self.messages:
            note("no message to answer yet")
        elif waiting := self._unanswered():
            note(f"{quoted(waiting[0]['function']['name'])} has no result yet; write it")
        else:
            self._answer(earlier)

    def _prompt(self) -> list[dict[str, Any]]:
        if self.system is None:
            return list(self.messages)
        return [{"role": "system", "content": self.system}, *self.messages]

    def _answer(self, earlier: dict[str, Any] | None = None) -> None:
        """Streams the answer to the last message.

        If nothing came, the `earlier` answer comes back; without one the message is taken back.
        """
        seed = None if self._random is None else self._random.getrandbits(63)
        answer = Answer()
        try:
            params = sampling_params(self._args, seed)
            answer.run(self._engine, self._prompt(), params, self._output, self.effort)
        except Terminated:
            self._output.end_line()
            raise
        except KeyboardInterrupt:
            self._keep(answer, earlier)
            note("stopped; Ctrl-C again leaves")
        except Error:
            self._output.end_line()
            self._take_back(earlier)
            raise
        else:
            self._keep(answer, earlier)

    def _keep(self, answer: Answer, earlier: dict[str, Any] | None) -> None:
        self._last = answer
        self._output.end_line()
        answer.note_rest()
        # Calls that are cut, or that no later prompt could carry, are told and left out.
        ended = answer.finish_reason == "tool_calls"
        calls = [call for call in answer.tool_calls if ended and call.well_formed]
        if answer.text or calls:  # past thoughts are part of the prompt
            self.messages.append(assistant_message(answer.text, answer.reasoning, calls))
            if calls:
                note("your next message is the result of the call; /regen answers anew")
        else:
            self._take_back(earlier)
            kept = "the message is taken back" if earlier is None else "the earlier one stays"
            note(f"no answer came; {kept}")

    def _take_back(self, earlier: dict[str, Any] | None) -> None:
        if earlier is None:
            self.messages.pop()
        else:
            self.messages.append(earlier)


def write_whole(path: Path, text: str) -> None:
    """Writes `path` whole or not at all; OutputError."""
    try:
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
    except OSError as error:
        reason = (error.strerror or "write failed").lower()
        raise OutputError(f"{quoted(str(path))}: could not be written: {reason}") from error


def _pipe_reader() -> str | None:
    line = sys.stdin.readline() if sys.stdin is not None else ""
    return line.rstrip("\r\n") if line else None


def _terminal_reader() -> ReadLine:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    words = [line.split()[0] for line in HELP.splitlines()]
    session: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=keys,
        multiline=True,
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
    )

    def read_line() -> str | None:
        try:
            return session.prompt(FormattedText([("ansigreen bold", "> ")]))
        except EOFError:
            return None

    return read_line


def _history() -> History:
    """The history file, readable by its owner alone; in memory where none can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = xdg_home(os.environ, "XDG_STATE_HOME", ".local/state") / "mmengine" / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        reason = (error.strerror or "write failed").lower()
        note(f"{quoted(str(path))}: history is not kept: {reason}", style="yellow")
        return InMemoryHistory()
    return FileHistory(str(path))
