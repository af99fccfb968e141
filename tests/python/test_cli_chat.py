"""mm-run chat through a pipe, with a fake engine: commands, the conversation, failures."""

import io
import json
import sys

import pytest

from fake_engine import FakeEngine
from mmengine import cli
from mmengine.errors import RequestError
from mmengine.outputs import Delta, Usage
from mmengine.settings import xdg_home
from support.scripted import make_mistral, scripted_engine
from test_mistral_tokenizer import small


@pytest.fixture
def talk(monkeypatch, capsys, tmp_path):
    """Feeds lines to chat; gives (exit code, stdout, stderr, the engine)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*lines, argv=(), terminal=None, engine=FakeEngine):
        made = []

        def factory(*args, **options):
            made.append(engine(*args, **options))
            return made[-1]

        text = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
        stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stdin)
        if terminal is not None:
            monkeypatch.setattr(sys, "stderr", terminal)
        code = cli.main(["chat", *argv], engine_factory=factory)
        captured = capsys.readouterr()
        return code, captured.out, captured.err, made[0]

    return call


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_turns_carry_the_conversation(talk):
    code, out, err, engine = talk("hello", "", "again", argv=["--system", "be kind"])
    assert (code, err) == (0, "")
    assert out == "echo: HELLO\necho: AGAIN\n"
    system = {"role": "system", "content": "be kind"}
    assert engine.prompts[1] == [system, user("hello"), assistant("echo: HELLO"), user("again")]


def test_exit_ends_before_later_lines(talk):
    code, out, _, engine = talk("one", "/exit", "two")
    assert (code, out) == (0, "echo: ONE\n")
    assert len(engine.prompts) == 1


def test_regen_answers_the_same_message(talk):
    _, out, _, engine = talk("one", "/regen", argv=["--seed", "7"])
    assert out == "echo: ONE\necho: ONE\n"
    assert engine.prompts[0] == engine.prompts[1] == [user("one")]
    seeds = [params.seed for params in engine.params]
    assert seeds[0] != seeds[1]
    assert seeds == [
        params.seed for params in talk("one", "/regen", argv=["--seed", "7"])[3].params
    ]
    assert "no message to answer yet" in talk("/regen")[2]


def test_clear_and_system(talk):
    _, _, err, engine = talk("one", "/system be terse", "/clear", "two", "/system", "three")
    assert engine.prompts[1] == [{"role": "system", "content": "be terse"}, user("two")]
    assert engine.prompts[2] == [user("two"), assistant("echo: TWO"), user("three")]
    assert err.count("system message: be terse") == 1
    assert "system message: the default of the model" in err


def test_read_puts_a_file_before_the_next_message(talk, tmp_path):
    (tmp_path / "notes.txt").write_text("facts\nmore")
    _, _, err, engine = talk(f"/read {tmp_path / 'notes.txt'}", "so?", "then?")
    assert engine.prompts[0] == [user("facts\nmore\nso?")]
    assert engine.prompts[1][-1] == user("then?")
    assert "10 characters" in err
    code, _, err, _ = talk("/read /no/such/file", "/read", "/read -")
    assert code == 0
    assert "no such file" in err
    assert "expected a file name" in err
    assert "stdin" in err


def test_save_writes_whole_and_spares_other_files(talk, tmp_path):
    target, other = tmp_path / "talk.json", tmp_path / "other.json"
    other.write_text("precious")
    _, _, err, _ = talk("one", f"/save {target}", "two", f"/save {target}", f"/save {other}")
    assert json.loads(target.read_text()) == [
        user("one"),
        assistant("echo: ONE"),
        user("two"),
        assistant("echo: TWO"),
    ]
    assert other.read_text() == "precious"
    assert "exists; choose another name" in err
    code, _, err, _ = talk("one", f"/save {tmp_path / 'absent' / 'x.json'}")
    assert code == 0
    assert "could not be written: no such file" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "talk.json"]


def test_notices_go_to_stderr(talk):
    code, out, err, _ = talk("/help", "/image x.png", "/effort high", "/dance", "/stats")
    assert (code, out) == (0, "")
    for text in ("/regen", "cannot read images", "no reasoning", 'unknown command "/dance"'):
        assert text in err
    assert "no answer yet" in err
    assert "generated 9 tokens" in talk("one", "/stats")[2]


def test_a_failing_request_is_told_and_taken_back(talk):
    code, out, err, engine = talk("x" * 60, "short", argv=["--max-context", "50"])
    assert (code, out) == (0, "echo: SHORT\n")
    assert err == "prompt: has 60 tokens, more than 50\n"
    assert engine.prompts[1] == [user("short")]


def test_input_that_is_not_text_is_told(talk):
    code, out, err, _ = talk("bad \udcff byte", "good")
    assert (code, out) == (0, "echo: GOOD\n")
    assert "UTF-8" in err


def test_a_dead_engine_ends_the_chat(talk):
    code, out, err, _ = talk("dies", "more")
    assert (code, out) == (70, "ech\n")
    assert err == "mm-run: engine: failed in step 3\n"


def test_state_folder():
    home = {"HOME": "/h"}
    assert str(xdg_home(home, "XDG_STATE_HOME", ".local/state")) == "/h/.local/state"
    relative = {**home, "XDG_STATE_HOME": "not/absolute"}
    assert str(xdg_home(relative, "XDG_STATE_HOME", ".local/state")) == "/h/.local/state"
    absolute = {**home, "XDG_STATE_HOME": "/s"}
    assert str(xdg_home(absolute, "XDG_STATE_HOME", ".local/state")) == "/s"


# Thoughts and efforts.


class Terminal(io.StringIO):
    """A terminal, as stderr."""

    def isatty(self):
        return True


def thought(text):
    return assistant(text) | dict.fromkeys(["reasoning", "reasoning_content"], "hm <b>\x1b[1mm\n")


def test_history_keeps_thoughts(talk, tmp_path):
    path = tmp_path / "talk.json"
    argv = ["-m", "thinker", "--reasoning-effort", "high"]
    code, out, err, engine = talk("one", "two", f"/save {path}", argv=argv)
    assert (code, out) == (0, "echo: ONE\necho: TWO\n")
    assert "hm" not in err
    assert engine.efforts == ["high", "high"]
    assert engine.prompts[1] == [user("one"), thought("echo: ONE"), user("two")]
    assert json.loads(path.read_text())[1] == thought("echo: ONE")


def test_thoughts_are_dimmed_on_a_terminal(talk, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    argv = ["-m", "thinker", "--reasoning-effort", "high"]
    _, out, _, _ = talk("one", "calls", argv=argv, terminal=terminal)
    assert out == "echo: ONE\n"
    shown = terminal.getvalue()
    assert "\x1b[2mhm <b>\x1b[0m" in shown
    assert "\x1b[1m" not in shown
    assert "\ufffd[1mm" in shown
    assert 'the model calls "f" with "{\\"a\\": 1}"' in shown


def test_effort(talk):
    lines = ["/effort", "/effort low", "/effort high", "one", "/effort none", "two", "/effort"]
    code, _, err, engine = talk(*lines, argv=["-m", "thinker"])
    assert (code, engine.efforts) == (0, ["high", "none"])
    assert err.splitlines() == [
        "reasoning effort: the default of the model",
        '/effort: expected none or high, got "low"',
        "reasoning effort: high",
        "reasoning effort: none",
        "reasoning effort: none",
    ]
    code, out, err, _ = talk("one", argv=["--reasoning-effort", "high"])
    assert (code, out) == (64, "")
    assert err == "mm-run: --reasoning-effort: smollm2 has no reasoning effort\n"


def test_an_answer_without_text_is_told_and_taken_back(talk):
    _, out, err, engine = talk("ponders", "one", argv=["-m", "thinker"])
    assert out == "echo: ONE\n"
    assert engine.prompts[1] == [user("one")]
    assert "taken back" in err
    argv = ["-m", "thinker", "--reasoning-effort", "high"]
    assert "the thought used all tokens" in talk("ponders", argv=argv)[2]


def test_a_call_stays_and_the_next_message_is_its_result(talk, tmp_path):
    path = tmp_path / "talk.json"
    lines = ["calls", "22 degrees", "/regen", "thanks", f"/save {path}"]
    _, out, err, engine = talk(*lines, argv=["-m", "thinker"])
    assert out == "echo: 22 DEGREES\n" * 2 + "echo: THANKS\n"
    function = {"name": "f", "arguments": '{"a": 1}'}
    calling = assistant(None)
    calling["tool_calls"] = [{"id": "abcdefghi", "type": "function", "function": function}]
    result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "22 degrees"}
    assert engine.prompts[1] == engine.prompts[2] == [user("calls"), calling, result]
    assert json.loads(path.read_text())[:3] == engine.prompts[1]
    assert engine.prompts[3][3:] == [assistant("echo: 22 DEGREES"), user("thanks")]
    assert 'calls "f"' in err
    assert "result of the call" in err


def test_a_call_is_answered_anew(talk):
    _, _, _, engine = talk("calls", "/regen", "r", argv=["-m", "thinker"])
    assert engine.prompts[1] == [user("calls")]
    assert [message["role"] for message in engine.prompts[2]] == ["user", "assistant", "tool"]


CALLING = '[TOOL_CALLS]f[ARGS]{"a": 1}'


def scripted_chat(folder, *turns):
    """An engine factory whose answers are `turns`, and the list of prompts that it gets."""
    folder = make_mistral(folder)
    prompts = []

    def script(ids):
        prompts.append(small().decode(ids, skip_special=False))
        return small().encode(turns[len(prompts) - 1], allow_special=True)

    def engine(model, **options):
        return scripted_engine(folder, script, lambda: 2, **options)[0]

    return engine, prompts


def test_calls_of_a_real_engine(talk, tmp_path):
    turns = [f"{CALLING}{CALLING}</s>", "Done.</s>", "[TOOL_CALLS]a b[ARGS]{}</s>", "Yes.</s>"]
    engine, prompts = scripted_chat(tmp_path / "model", *turns)
    code, out, err, _ = talk("Q", "one", "/regen", "two", "bad", "more", engine=engine)
    assert (code, out) == (0, "Done.\nYes.\n")
    assert '"f" has no result yet' in err
    result = "[TOOL_RESULTS]one[/TOOL_RESULTS][TOOL_RESULTS]two[/TOOL_RESULTS]"
    assert prompts[1].endswith(f"Q[/INST]{CALLING}{CALLING}</s>{result}")
    assert prompts[2].endswith(f"{result}Done.</s>[INST]bad[/INST]")
    assert prompts[3].endswith(f"{result}Done.</s>[INST]more[/INST]")


class FailingLater(FakeEngine):
    """From the second answer on it fails, is interrupted or says nothing, as `kind` says."""

    kind = ""

    def stream(self, prompt, params, reasoning_effort=None):
        if self.prompts and self.kind != "":
            kind, self.kind = self.kind, ""
            self.prompts.append(prompt)
            if kind == "fails":
                raise RequestError("prompt: too long")
            if kind == "stopped":
                raise KeyboardInterrupt
            return iter([Delta("", [2], finish_reason="stop", usage=Usage(1, 1))])
        return super().stream(prompt, params, reasoning_effort)


@pytest.mark.parametrize("kind", ["fails", "stopped", "empty"])
def test_a_regen_that_fails_leaves_the_answer(talk, tmp_path, kind):
    path = tmp_path / "talk.json"
    engine = type("Engine", (FailingLater,), {"kind": kind})
    code, _, err, made = talk("one", "/regen", f"/save {path}", "two", engine=engine)
    assert code == 0
    assert "2 messages saved" in err
    assert json.loads(path.read_text()) == [user("one"), assistant("echo: ONE")]
    assert made.prompts[1] == [user("one")]
    assert made.prompts[2] == [user("one"), assistant("echo: ONE"), user("two")]
    assert ("the earlier one stays" in err) is (kind != "fails")


def test_tokens_of_a_real_engine(talk, tmp_path):
    folder = make_mistral(tmp_path / "model")
    turn = "[THINK]hm[/THINK]Yes.</s>"
    prompts = []

    def script(ids):
        prompts.append(small().decode(ids, skip_special=False))
        return small().encode(turn, allow_special=True)

    def engine(model, **options):
        return scripted_engine(model, script, lambda: 2, **options)[0]

    lines = ["/effort high", "Is it?", "[INST]", "/regen", "/stats"]
    code, out, err, _ = talk(*lines, argv=["-m", str(folder)], engine=engine)
    assert (code, out) == (0, "Yes.\nYes.\nYes.\n")
    assert f"({len(small().encode('hm')) + 2} of thought)" in err
    assert prompts[1].endswith(f"[/MODEL_SETTINGS][INST]Is it?[/INST]{turn}[INST][INST][/INST]")
    assert prompts[2] == prompts[1]
