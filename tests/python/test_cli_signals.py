"""mm-run as a process, with a fake engine: signals, closed pipes, full disks, terminals."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_engine; "
    "from mmengine import cli; "
    "sys.exit(cli.main(engine_factory=fake_engine.FakeEngine))"
)


def default_signals():
    """Test runners in the background have SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# The entry point of mm-run; what is sought by the name in argv writes a byte and sends a signal.
EARLY = """
import os, signal, sys
where, number = sys.argv.pop(1), int(sys.argv.pop(1))
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == where:
            os.write(1, b"!")
            if number:
                os.kill(os.getpid(), number)
sys.meta_path.insert(0, Hook())
from mmengine.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def start(tmp_path):
    """Starts mm-run; whatever is left of it at the end is killed."""
    running = []

    def call(*argv, program=PROGRAM, **options):
        if program is PROGRAM:
            argv = (str(HERE), *argv)
        environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        environment["XDG_STATE_HOME"] = str(tmp_path / "state")
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [sys.executable, "-c", program, *argv],
            env=environment,
            preexec_fn=default_signals,
            **options,
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def read_until(stream, text):
    """Reads single bytes until `text` has come, as a person watches the answer grow."""
    seen = b""
    while text not in seen:
        byte = os.read(stream.fileno(), 1)
        assert byte, f"stdout ended after {seen!r}"
        seen += byte
    return seen


def test_sigint_keeps_the_text_and_exits_130(start):
    process = start("generate", "-p", "slow " * 50)
    seen = read_until(process.stdout, b"echo: SL")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert (b"echo: " + b"SLOW " * 50).startswith((seen + out)[:-1])
    assert err == b"mm-run: interrupted\n"


def test_sigint_with_json_prints_what_came(start):
    process = start("generate", "-p", "interrupts", "--json")
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b'"text": "echo: IN"' in out
    assert b'"finish_reason": "cancelled"' in out


def test_sigterm_exits_143(start):
    process = start("generate", "-p", "slow " * 50)
    read_until(process.stdout, b"echo")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert out.endswith(b"\n")
    assert err == b"mm-run: terminated\n"


def test_a_second_sigint_ends_a_step_that_does_not(start):
    process = start("generate", "-p", "stuck")
    read_until(process.stdout, b"ech")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_a_reader_that_leaves_ends_it_quietly(start):
    process = start("generate", "-p", "slow " * 50)
    read_until(process.stdout, b"echo")
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""


def test_a_full_disk_is_an_output_error(start):
    with open("/dev/full", "w") as full:
        process = start("generate", "-p", "hi", stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 74
    assert err == b"mm-run: stdout: could not be written: no space left on device\n"


def test_chat_survives_an_interrupted_answer(start):
    process = start("chat", stdin=subprocess.PIPE)
    out, err = process.communicate(b"this interrupts\nnext\n", timeout=20)
    assert process.returncode == 0
    assert out == b"echo: TH\necho: NEXT\n"
    assert b"stopped" in err


@pytest.mark.parametrize(
    "module",
    [
        "mmengine.cli",
        "argparse",
        "mmengine.settings",
        "mmengine.cli_signals",
        "mmengine.cli_generate",
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_imports_leaves_without_a_traceback(start, module, number, code):
    process = start(module, str(int(number)), "generate", "-p", "x", program=EARLY)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, b"!")
    assert err == (b"mm-run: interrupted\n" if code == 130 else b"mm-run: terminated\n")


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 10, 20, 40, 70, 100, 150, 200, 300, 500])
def test_sigint_soon_after_the_start_exits_130(start, milliseconds):
    # "No such model" may be told first, where the machine is fast.
    process = start(
        "mmengine.cli", "0", "chat", "-m", "/no/such", stdin=subprocess.PIPE, program=EARLY
    )
    read_until(process.stdout, b"!")
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert b"Traceback" not in err
    assert err.startswith(b"mm-run: ")
    assert process.returncode == (130 if b"interrupted" in err else 66)
    assert out == b""


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 6, 8, 12, 16, 24])
def test_sigint_at_the_end_is_no_signal_death(start, milliseconds):
    process = start("none", "0", "--version", program=EARLY)
    read_until(process.stdout, b"mm-run")
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) in ((0, b""), (130, b"mm-run: interrupted\n"))


class Terminal:
    """mm-run on a pseudo-terminal."""

    def __init__(self, start, *argv):
        self.side, child = pty.openpty()
        self.process = start(*argv, stdin=child, stdout=child, stderr=child)
        os.close(child)
        self.seen = b""

    def expect(self, text):
        deadline = time.monotonic() + 20
        while text not in self.seen:
            ready, _, _ = select.select([self.side], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in {self.seen!r}"
            data = os.read(self.side, 4096)
            self.seen += data
            if b"\x1b[6n" in data:  # where is the cursor?
                os.write(self.side, b"\x1b[1;1R")
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data):
        os.write(self.side, data)

    def end(self):
        """The exit code; what comes until then is read, or the process could not write it."""
        while self.process.poll() is None:
            ready, _, _ = select.select([self.side], [], [], 0.1)
            if ready:
                try:
                    self.seen += os.read(self.side, 4096)
                except OSError:  # the other side is closed
                    break
        code = self.process.wait(timeout=20)
        os.close(self.side)
        return code


def test_chat_on_a_terminal(start, tmp_path):
    terminal = Terminal(start, "chat")
    terminal.expect(b"> ")
    terminal.type(b"hello\r")
    terminal.expect(b"echo: HELLO")
    terminal.expect(b"> ")
    terminal.type(b"\x04")
    assert terminal.end() == 0
    history = tmp_path / "state" / "mmengine" / "history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_at_the_prompt_leaves(start):
    terminal = Terminal(start, "chat")
    terminal.expect(b"> ")
    terminal.type(b"\x03")
    assert terminal.end() == 130


def test_ctrl_c_stops_the_answer_then_leaves(start):
    terminal = Terminal(start, "chat")
    for _ in range(2):  # the event loop of the prompt must not keep the signal
        terminal.expect(b"> ")
        terminal.type(b"slow slow slow slow slow slow\r")
        terminal.expect(b"echo: SL")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.expect(b"stopped")
        time.sleep(1.1)  # a second one sooner would end the process at once
    terminal.expect(b"> ")
    terminal.type(b"\x03")
    assert terminal.end() == 130
