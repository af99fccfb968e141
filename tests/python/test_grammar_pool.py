"""The processes that compile grammars: what waits for them, and what becomes of those that die."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from mmengine.errors import EngineDeadError, OverloadedError, ResourceError
from mmengine.grammar_pool import MAX_PROCESSES, GrammarPool
from mmengine.grammar_process import GrammarProcess, closed
from mmengine.grammars import Grammars
from test_mistral_tokenizer import small

DEAR = 'start: A\nA: B{1000}\nB: C{1000}\nC: "a"{1000}\n'
NEW = 'start: "new"\n'


class Held(GrammarProcess):
    """One whose grammars take until it is let go."""

    def __init__(self) -> None:
        self.was_ready = True
        self.let_go = threading.Event()
        self.ended = False

    def compile(self, grammar: str, ends_at: float = math.inf) -> str | None:
        assert self.let_go.wait(60)
        if self.ended:
            raise closed()
        return grammar

    def close(self) -> None:
        self.ended = True
        self.let_go.set()

    def release(self) -> None:
        """Has no child."""


class Work(threading.Thread):
    """Begins at once, and keeps what comes of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work, self.result = work, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:
            self.result = error

    def outcome(self) -> object:
        self.join(60)
        assert not self.is_alive()
        return self.result


@pytest.fixture
def held() -> Iterator[tuple[GrammarPool, list[Held], list[Work]]]:
    """A pool all of whose processes are busy, and the work in them."""
    made: list[Held] = []

    def new() -> Held:
        made.append(Held())
        return made[-1]

    pool = GrammarPool(new)
    works = [Work(lambda at=at: pool.compile(f"{at}")) for at in range(MAX_PROCESSES)]
    until(lambda: len(pool._busy) == MAX_PROCESSES)
    yield pool, made, works
    pool.close()


def until(reached: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_one_too_many_waits_a_little(held: tuple[GrammarPool, list[Held], list[Work]]) -> None:
    pool, made, works = held
    assert len(made) == MAX_PROCESSES > 1
    with pytest.raises(OverloadedError, match="2 other grammars are being compiled") as caught:
        pool.compile("too many")
    assert caught.value.retry_after == 1.0
    with pytest.raises(TimeoutError):
        pool.compile("too late", time.monotonic() + 0.01)
    made[0].let_go.set()
    assert pool.compile("next") == "next"
    made[1].let_go.set()
    assert [work.outcome() for work in works] == ["0", "1"]
    assert len(made) == MAX_PROCESSES


def test_close_ends_what_runs_and_what_waits(
    held: tuple[GrammarPool, list[Held], list[Work]],
) -> None:
    pool, made, works = held
    works.append(Work(lambda: pool.compile("waits")))
    pool.close()
    for work in works:
        assert isinstance(work.outcome(), EngineDeadError)
    assert len(made) == MAX_PROCESSES


# ---- real processes ------------------------------------------------------------------------------


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    made = Grammars(small(), small().vocab_size)
    assert made.fault('start: "warm"\n') == ""
    yield made
    made.close()


def worker(grammars: Grammars) -> psutil.Process:
    """The one that takes the next grammar."""
    child = grammars._pool._idle[-1]._child
    assert child is not None
    return psutil.Process(child.pid)


def test_what_was_too_dear_is_tried_once(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grammars.fault(DEAR) is None

    def compile(*_: object) -> str:
        raise AssertionError("once more")

    monkeypatch.setattr(grammars._pool, "compile", compile)
    assert grammars.fault(DEAR) is None


def test_the_time_of_a_request_bounds_its_grammar(grammars: Grammars) -> None:
    worker(grammars).suspend()
    assert grammars.until(time.monotonic() + 0.05).fault(NEW) == ""
    assert grammars.until(time.monotonic() - 1).fault(NEW) == ""
    assert NEW not in grammars._kept.of
    assert grammars.fault(NEW) == ""
    assert NEW in grammars._kept.of


def test_a_short_time_lets_a_process_come_up() -> None:
    mine = Grammars(small(), small().vocab_size)
    assert mine.until(time.monotonic() + 0.01).fault(NEW) == ""
    first = worker(mine)
    assert mine.fault(NEW) == ""
    assert worker(mine) == first
    mine.close()


@pytest.mark.parametrize("large", [False, True])
def test_one_that_was_stopped_is_replaced(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr("mmengine.grammar_process._WALL_SECONDS", 2.0)
    worker(grammars).suspend()
    comment = "// " + "x" * (100_000 if large else 1)  # more than a pipe holds
    assert grammars.fault(f"{NEW}{comment}\n") == ""


def test_one_that_was_killed_is_replaced(grammars: Grammars) -> None:
    victim = worker(grammars)
    victim.suspend()
    work = Work(lambda: grammars.fault(NEW))
    until(lambda: bool(grammars._pool._busy))
    victim.kill()
    assert work.outcome() == ""


def test_one_that_is_killed_again_and_again(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os; input(); print('{}', flush=True); input(); os.kill(os.getpid(), 9)"
    opened = []

    def open_one(_: GrammarProcess) -> subprocess.Popen[bytes]:
        opened.append(True)
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", script], bufsize=0, stdin=pipe, stdout=pipe)

    monkeypatch.setattr(GrammarProcess, "_open", open_one)
    worker(grammars).kill()
    with pytest.raises(ResourceError, match="was ended from outside"):
        grammars.fault(NEW)
    assert len(opened) <= 2
    monkeypatch.undo()
    assert grammars.fault(NEW) == ""


def test_nothing_is_compiled_after_close(grammars: Grammars) -> None:
    first = worker(grammars)
    first.suspend()
    work = Work(lambda: grammars.fault(NEW))
    until(lambda: bool(grammars._pool._busy))
    grammars.close()
    assert isinstance(work.outcome(), EngineDeadError)
    assert not first.is_running()
    for text in (NEW, 'start: "warm"\n'):
        with pytest.raises(EngineDeadError, match="closed"):
            grammars.fault(text)
    assert all(process._child is None for process in grammars._pool._idle)
    assert not first.is_running()
