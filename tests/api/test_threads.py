"""Threads, processes and ends: any thread may do anything at any moment, close() included.

What must not happen is a hang, a crash, a wrong bit or a leak.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmengine
from mmengine import errors
from mmengine.request import ChatOptions
from mmengine.terms import Terms
from support.outcomes import greedy, outcome, sampled
from support.scripted import make_mistral
from support.scripts import run_script

Tiny = Callable[..., str]
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
ENDLESS = 8000  # tokens


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs work(0), ... work(count - 1) at once; raises what one of them raises."""
    failures: list[BaseException] = []

    def guarded(at: int) -> None:
        try:
            work(at)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def test_many_threads_at_once(engine: mmengine.Engine, prompts: list[list[int]]) -> None:
    expected = [outcome(engine.generate(prompt, sampled())) for prompt in prompts]
    results: list[tuple[int, Any]] = []

    def work(thread: int) -> None:
        for i in range(3 * len(prompts)):
            at = (i + thread) % len(prompts)
            results.append((at, outcome(engine.generate(prompts[at], sampled()))))

    in_threads(4, work)
    assert len(results) == 4 * 3 * 7
    assert all(result == expected[at] for at, result in results)


def test_two_engines_in_parallel(tiny: Tiny, prompts: list[list[int]]) -> None:
    options: list[dict[str, Any]] = [{}, {"seed": 77, "vocab": 131, "dtype": "bf16"}]
    engines = [mmengine.Engine(tiny(**option), device="cpu", threads=2) for option in options]
    solo = [[outcome(e.generate(prompt, sampled())) for prompt in prompts] for e in engines]
    assert solo[0] != solo[1]

    def work(at: int) -> None:
        engine, expected = engines[at % 2], solo[at % 2]
        for _ in range(10):
            batch = engine.generate(prompts, sampled())
            assert [outcome(done) for done in batch] == expected

    in_threads(4, work)
    for engine in engines:
        engine.close()


def test_everything_from_eight_threads(tiny: Tiny, prompts: list[list[int]]) -> None:
    """submit, cancel, stream, read in part, drop, ask; what is read to its end is right."""
    with mmengine.Engine(tiny(), device="cpu", max_batch=6, kv_blocks=24) as engine:
        expected = [outcome(engine.generate(prompt, sampled())) for prompt in prompts]

        def work(thread: int) -> None:
            draw = random.Random(thread)
            for _ in range(60):
                at = draw.randrange(len(prompts))
                match draw.randrange(6):
                    case 0:
                        assert outcome(engine.generate(prompts[at], sampled())) == expected[at]
                    case 1:
                        request = engine.submit(prompts[at], sampled())
                        request.cancel()
                        ids = request.result().token_ids
                        assert tuple(ids) == expected[at][0][: len(ids)]
                    case 2:
                        stream = engine.stream(prompts[at], sampled())
                        for _ in range(draw.randrange(5)):
                            next(stream)
                        stream.close()
                    case 3:
                        engine.submit(prompts[at], sampled(n=2))
                    case 4:
                        stats = engine.stats()
                        assert stats.kv_blocks_used <= stats.kv_blocks_total
                    case _:
                        request = engine.submit(prompts[at], sampled())
                        next(iter(request))
                        assert outcome(request.result()) == expected[at]

        in_threads(8, work)
        assert outcome(engine.generate(prompts[2], sampled())) == expected[2]
        while engine.stats().requests_waiting + engine.stats().requests_running:
            engine.generate([1], greedy(max_tokens=1))  # those that were dropped go on
        engine.generate([1], greedy(max_tokens=1))
        assert engine.stats().kv_blocks_used == 0


# ---- close -----------------------------------------------------------------------------------


class Pour:
    """Threads that use an engine in every way until it is closed, by one of them."""

    def __init__(self, engine: mmengine.Engine, in_full_flow: bool) -> None:
        self.engine = engine
        self.in_full_flow = in_full_flow
        self.pending: list[mmengine.PendingRequest] = []
        self.warm = threading.Event()

    def work(self, at: int) -> None:
        if at == 0:
            self.close()
            return
        with pytest.raises(errors.EngineDeadError, match="closed"):
            self.use_for_ever(at)

    def close(self) -> None:
        assert self.warm.wait(60)
        if self.in_full_flow:
            next(iter(self.pending[0]))
        self.engine.close()

    def use_for_ever(self, at: int) -> None:
        params = greedy(max_tokens=2)
        while True:
            if at == 1:
                list(self.engine.stream(PROMPT, params))
            elif at == 2:
                self.engine.generate([PROMPT] * 3, params)
            elif at == 3:
                self.engine.stats()
            else:
                self.pending.append(self.engine.submit(PROMPT, params))
                if len(self.pending) > 50:
                    self.warm.set()


@pytest.mark.parametrize("turn", range(10))
def test_close_while_requests_pour_in(turn: int, tiny: Tiny) -> None:
    """Whoever waits is told; nobody waits for ever."""
    pour = Pour(mmengine.Engine(tiny(), device="cpu", max_batch=4), in_full_flow=turn % 2 == 1)
    in_threads(6, pour.work)
    ended = 0
    for request in pour.pending:
        try:
            ended += request.result(60).finish_reason == "length"
        except errors.EngineDeadError:
            assert request.done
    assert ended < len(pour.pending)


def test_close_inside_a_stream(tiny: Tiny) -> None:
    engine = mmengine.Engine(tiny(max_context=8192), device="cpu")
    seen = 0

    def consume() -> None:
        nonlocal seen
        for _ in engine.stream(PROMPT, greedy(max_tokens=ENDLESS)):
            seen += 1
            engine.close()

    with pytest.raises(errors.EngineDeadError, match="closed"):
        consume()
    assert 1 <= seen < ENDLESS


def test_close_from_the_thread_that_steps(tiny: Tiny) -> None:
    """A result's notification may close the engine, be it as a collected object."""
    engine = mmengine.Engine(tiny(), device="cpu")
    made = engine._intake.one_answer(PROMPT, greedy(), ChatOptions(), Terms())
    inbox = engine._intake.stream(made, Terms(), engine.close)
    with pytest.raises(errors.EngineDeadError, match="closed"):
        list(iter(inbox.next_delta, None))
    engine.close()


def test_close_from_many_threads(tiny: Tiny) -> None:
    for _ in range(10):
        engine = mmengine.Engine(tiny(max_context=8192), device="cpu")
        requests = [engine.submit(PROMPT, greedy(max_tokens=ENDLESS)) for _ in range(5)]
        in_threads(5, lambda _, engine=engine: engine.close())
        for request in requests:
            with pytest.raises(errors.EngineDeadError):
                request.result(60)


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_an_engine_that_is_collected_while_it_computes(in_a_cycle: bool, tiny: Tiny) -> None:
    before = threading.active_count()
    for _ in range(10):
        engine = mmengine.Engine(tiny(max_context=8192), device="cpu", threads=2)
        for _ in range(3):
            engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
        if in_a_cycle:
            cycle: list[Any] = [engine]
            cycle.append(cycle)
            del cycle
        stream = engine.stream(PROMPT, greedy(max_tokens=ENDLESS))
        next(stream)
        del engine, stream
        gc.collect()
    assert threading.active_count() == before


def test_logits_keep_their_engine(tiny: Tiny) -> None:
    blocks = mmengine.Engine(tiny(), device="cpu", prefill_chunk=8).logits_blocks([1] * 64)
    gc.collect()
    assert sum(len(block) for block in blocks) == 64


EXIT = """
import asyncio, sys, threading, mmengine
params = mmengine.SamplingParams(max_tokens=8000, temperature=0.0, ignore_eos=True)
engine = mmengine.Engine(sys.argv[1], device="cpu", threads=2)
kind = sys.argv[2]
if kind == "stream":
    streams = [engine.stream([1, 2, 3], params) for _ in range(10)]  # fewer than run at once
    for stream in streams:
        next(stream)
elif kind == "submit":
    requests = [engine.submit([1, 2, 3], params) for _ in range(50)]
elif kind == "astream":
    async def take():
        left.append(engine.astream([1, 2, 3], params))
        await anext(left[0])
    left = []
    asyncio.run(take())
elif kind == "thread":
    def consume():
        try:
            list(engine.stream([1, 2, 3], params))
        except mmengine.EngineDeadError:
            pass
    begun = engine.submit([3, 2, 1], params)
    threading.Thread(target=consume, daemon=True).start()
    next(iter(begun))
elif kind == "sys.exit":
    request = engine.submit([1, 2, 3], params)
    next(iter(request))
    sys.exit(0)
"""


@pytest.mark.parametrize("kind", ["stream", "submit", "astream", "thread", "sys.exit"])
def test_the_interpreter_exits_with_live_requests(kind: str, tiny: Tiny) -> None:
    assert run_script(EXIT, tiny(max_context=8192), kind) == ""


OUTLIVES = """
import asyncio, sys, threading
import mmengine
params = mmengine.SamplingParams(max_tokens=4, temperature=0.0)
def use():
    threading.main_thread().join()
    with mmengine.Engine(sys.argv[1], device="cpu") as engine:
        async def take():
            return [i async for delta in engine.astream([1, 2, 3], params) for i in delta.token_ids]
        ids = engine.generate([1, 2, 3], params).token_ids
        submitted = engine.submit([1, 2, 3], params).result().token_ids
        print(len(ids), asyncio.run(take()) == ids == submitted)
threading.Thread(target=use).start()
"""


def test_a_thread_that_outlives_the_main_one(tiny: Tiny) -> None:
    """The interpreter waits for it; the standard pools of threads take no more work by then."""
    assert run_script(OUTLIVES, tiny()) == "4 True\n"


GROWTH = """
import sys, time, psutil, mmengine
params = mmengine.SamplingParams(max_tokens=8, temperature=0.0)
def cycle():
    engine = mmengine.Engine(sys.argv[1], device="cpu", threads=2)
    engine.generate([1, 2, 3], params)
    next(engine.stream([1, 2, 3], params))
    engine.submit([1, 2, 3], params)
    engine.close()
for _ in range(10):
    cycle()
before = psutil.Process().memory_info().rss
threads = psutil.Process().num_threads()
for _ in range(90):
    cycle()
grown = psutil.Process().memory_info().rss - before
deadline = time.monotonic() + 10  # a joined thread may still be on its way out of the kernel
while psutil.Process().num_threads() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
print(grown, psutil.Process().num_threads() - threads)
"""


def test_create_and_close_do_not_grow(tiny: Tiny) -> None:
    grown_bytes, more_threads = map(int, run_script(GROWTH, tiny()).split())
    assert grown_bytes <= 8 * 2**20
    assert more_threads <= 0


# ---- fork ------------------------------------------------------------------------------------

FORK = """
import asyncio, os, sys, mmengine
from mmengine.errors import ForkError
params = mmengine.SamplingParams(max_tokens=8000, temperature=0.0, ignore_eos=True)
short = mmengine.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
engine = mmengine.Engine(sys.argv[1], device="cpu", threads=2)
before = engine.generate([1, 2, 3], short).token_ids
request = engine.submit([1, 2, 3], params)
stream = engine.stream([1, 2, 3], params)
next(stream)

async def take():
    return await anext(engine.astream([1, 2, 3], short))

async def wait():
    return await request

uses = {
    "generate": lambda: engine.generate([1, 2, 3], short),
    "list": lambda: engine.generate([[1, 2, 3]] * 2, short),
    "chat": lambda: engine.chat([{"role": "user", "content": "hi"}], short),
    "stream": lambda: engine.stream([1, 2, 3], short),
    "next": lambda: next(stream),
    "astream": lambda: asyncio.run(take()),
    "submit": lambda: engine.submit([1, 2, 3], short),
    "result": lambda: request.result(),
    "done": lambda: request.done,
    "cancel": lambda: request.cancel(),
    "iteration": lambda: next(iter(request)),
    "await": lambda: asyncio.run(wait()),
    "logits": lambda: engine.logits([1, 2, 3]),
    "stats": engine.stats,
    "plan": engine.plan,
    "bandwidth": engine.measure_read_bandwidth,
    "peak": engine.measure_multiply_peak,
}
for turn in range(3):  # at other moments of a step
    child = os.fork()
    if child == 0:
        failed = ""
        for name, use in uses.items():
            try:
                use()
                failed += f"{name} gave an answer; "
            except ForkError as error:
                if "spawn" not in str(error):
                    failed += f"{name}: {error}; "
            except BaseException as error:
                failed += f"{name}: {error!r}; "
        stream.close()
        engine.close()  # nothing that could be waited for
        os.write(2, failed.encode())
        os._exit(bool(failed))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"
    next(stream)
request.cancel()
request.result()
assert engine.generate([1, 2, 3], short).token_ids == before
engine.close()
"""


def test_every_use_after_fork_is_refused(tiny: Tiny) -> None:
    run_script(FORK, tiny(max_context=8192))


FORK_IN_A_COMPILE = """
import faulthandler, os, sys, threading, time, psutil, mmengine
from mmengine import grammar_process
grammar_process._WALL_SECONDS = 600.0
engine = mmengine.Engine(sys.argv[1], device="cpu")
grammars = engine._intake.grammars
assert grammars.fault('start: "a"') == ""
(worker,) = psutil.Process().children()
worker.suspend()  # the compile lasts
def compile():
    grammars.fault('start: "b"')
begun = threading.Thread(target=compile, daemon=True)
begun.start()
time.sleep(0.5)
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(20, exit=True)
    if sys.argv[2] == "close":
        engine.close()
        os._exit(0)
    if sys.argv[2] == "use":
        try:
            grammars.fault('start: "c"')
        except mmengine.ForkError:
            os._exit(0)
        os._exit(1)
    if sys.argv[2] == "drop":
        del engine, grammars
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert begun.is_alive()
worker.resume()
begun.join()
engine.close()
sys.exit(status)
"""


@pytest.mark.parametrize("way", ["exit", "close", "drop", "use"])
def test_a_fork_in_the_middle_of_a_compile(way: str, tmp_path: Path) -> None:
    run_script(FORK_IN_A_COMPILE, str(make_mistral(tmp_path)), way)


# ---- the GIL ---------------------------------------------------------------------------------

TICKER = """
import hashlib, sys, threading, time, mmengine

class Ticker(threading.Thread):
    # Counts how often a thread gets its turn, as an event loop would.
    ticks, running = 0, True
    def run(self):
        while self.running:
            time.sleep(0.0005)
            self.ticks += 1

def rate(work):
    ticks, start = ticker.ticks, time.monotonic()
    work()
    return (ticker.ticks - ticks) / (time.monotonic() - start)

engine = mmengine.Engine(sys.argv[1], device="cpu", threads=1, prefix_cache=False)
params = mmengine.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
prompt = [7 * i % 97 for i in range(700)]
ticker = Ticker(daemon=True)
ticker.start()
data = bytes(60_000_000)
free, loaded, held = [], [], []
for _ in range(6):  # in turns: others use this machine, too
    free.append(rate(lambda: hashlib.sha256(data)))  # as much of a processor, none of the GIL
    loaded.append(rate(lambda: engine.generate(prompt, params)))
    numbers = [i * 7919 % 1000003 for i in range(400_000)]
    held.append(rate(numbers.sort))  # a call into C that keeps the GIL
print(max(l / f for l, f in zip(loaded, free)), max(h / f for h, f in zip(held, free)))
ticker.running = False
ticker.join()
engine.close()
"""


def test_python_threads_keep_their_pace(tiny: Tiny) -> None:
    """At least half the rate beside a load that leaves the GIL alone. That load, in the place of
    idleness, takes the scarcity of processors out; a call that keeps the GIL would be seen.
    """
    model = tiny(hidden=256, intermediate=1024, layers=4, max_context=1024)
    loaded, held = map(float, run_script(TICKER, model).split())
    assert loaded >= 0.5
    assert held < 0.5
