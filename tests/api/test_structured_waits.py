"""New grammars through the engine while the process that compiles them is stopped, or busy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mmengine
from mmengine import SamplingParams
from support.scripted import make_mistral


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mistral(tmp_path_factory.mktemp("mistral"), max_context=1024)


@pytest.fixture
def engine(folder: Path) -> Iterator[mmengine.Engine]:
    with mmengine.Engine(folder, device="cpu") as made:
        assert made.generate("Hi", of("warm")).text == "warm"
        yield made


def of(text: str, **options: Any) -> SamplingParams:
    """The answer is this text."""
    return SamplingParams(grammar=f'start: "{text}"', max_tokens=40, **options)


def worker(engine: mmengine.Engine) -> psutil.Process:
    child = engine._intake.grammars._pool._idle[-1]._child
    assert child is not None
    return psutil.Process(child.pid)


def test_a_deadline_bounds_the_grammar(engine: mmengine.Engine) -> None:
    for use in (engine.generate, engine.submit):
        assert engine.generate("Hi", of(use.__name__)).text == use.__name__
        worker(engine).suspend()
        done = use("Hi", of("a", n=2), deadline=0.2)
        if isinstance(done, mmengine.PendingRequest):
            done = done.result()
        assert [one.finish_reason for one in done.choices] == ["cancelled"] * 2
        assert [one.token_ids for one in done.choices] == [[], []]
    assert engine.generate("Hi", of("b")).text == "b"


def test_an_event_loop_goes_on_while_a_grammar_is_compiled(engine: mmengine.Engine) -> None:
    process = worker(engine)
    process.suspend()

    async def wake() -> None:
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert process.status() == psutil.STATUS_STOPPED  # not given up
        process.resume()

    async def answer() -> str:
        return "".join([delta.text async for delta in engine.astream("Hi", of("c"))])

    async def both() -> str:
        text, _ = await asyncio.gather(answer(), wake())
        return text

    assert asyncio.run(both()) == "c"
    assert worker(engine) == process


def test_a_task_cancelled_while_a_grammar_is_compiled(engine: mmengine.Engine) -> None:
    process = worker(engine)
    process.suspend()

    async def leave() -> None:
        task = asyncio.ensure_future(anext(engine.astream("Hi", of("d"))))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        process.resume()

    asyncio.run(leave())
    assert engine.stats().requests_running == 0
    assert engine.generate("Hi", of("e")).text == "e"


def test_a_closed_engine_compiles_nothing(engine: mmengine.Engine) -> None:
    process = worker(engine)
    engine.close()
    assert not process.is_running()
    uses = (engine.generate, engine.stream, engine.submit)
    for params in (of("f"), of("warm"), SamplingParams(grammar="no grammar")):
        for use in uses:
            with pytest.raises(mmengine.EngineDeadError, match="closed"):
                use("Hi", params)
    assert engine._intake.grammars._pool._idle == []


def test_close_in_the_middle_of_a_grammar(engine: mmengine.Engine) -> None:
    process = worker(engine)
    process.suspend()
    results: list[Any] = []

    def ask() -> None:
        try:
            results.append(engine.generate("Hi", of("g")))
        except mmengine.Error as error:
            results.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.2)
    engine.close()
    thread.join(60)
    assert [type(result) for result in results] == [mmengine.EngineDeadError]
    assert not process.is_running()
