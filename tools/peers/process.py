"""The side that asks: processes of engines, and runs that nobody disturbs.

A run is made when all other engines sleep and other programs leave the processors alone, and made
again where they did not; what is left of them is told. So is what the host of a virtual machine
stole, which counts as theirs. Times of processors come from /proc (Linux).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.processor_time import ProcessorTime, read_processor_time

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET = 0.05  # share of the processors that others may use
LOOK_S = 0.3
MAX_WAIT_S = 20.0
MAX_TRIES = 3
MAX_TRIES_S = 30.0  # no further try is made after so many seconds of runs
MAX_ASLEEP = 0.02  # of one processor, used by an engine that is not asked


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens per second of a prompt and of the steps after it; the share of the processors that
    programs other than the engines took meanwhile, and the part of it that the host stole."""

    prefill: float
    decode: float
    others: float
    stolen: float


class Process:
    """One engine, loaded. Its stderr is in `log`."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            self.about = str(self._answer()["about"])
        except BaseException:
            self.close()
            raise

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer; SystemExit with the end of the log when the process has died."""
        with suppress(BrokenPipeError):  # _answer tells why
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def cpu_seconds(self) -> float:
        """Processor time of all threads so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text("ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            tail = "\n".join(self._log.read_text("utf-8", errors="replace").splitlines()[-5:])
            raise SystemExit(f"{self.name}: ended with {code}; {self._log} ends with\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(process: Process, everyone: Sequence[Process], prompt: list[int], gen: int) -> Run:
    """The least disturbed of up to MAX_TRIES runs of one engine, while the others sleep.

    Raises SystemExit when one of them does not.
    """
    runs: list[Run] = []
    spent = 0.0
    while not runs or (runs[-1].others > QUIET and len(runs) < MAX_TRIES and spent <= MAX_TRIES_S):
        wait_until_quiet(everyone)
        before, cpu = clocks(everyone), [each.cpu_seconds() for each in everyone]
        answer = process.ask(prompt=prompt, gen=gen)
        after = clocks(everyone)
        seconds = answer["prefill_s"] + answer["decode_s"]
        for each, used in zip(everyone, cpu, strict=True):
            awake = (each.cpu_seconds() - used) / seconds
            if each is not process and awake > MAX_ASLEEP:
                raise SystemExit(f"{each.name}: used {100 * awake:.0f} % of a processor unasked")
        rates = len(prompt) / answer["prefill_s"], gen / answer["decode_s"]
        runs.append(Run(*rates, share_of_others(before, after), share_of_host(before, after)))
        spent += seconds
    return min(runs, key=lambda run: run.others)


def wait_until_quiet(everyone: Sequence[Process]) -> None:
    """Returns when neither engines nor others use the processors, or after MAX_WAIT_S."""
    deadline = time.monotonic() + MAX_WAIT_S
    while time.monotonic() < deadline:
        before, own = clocks(everyone), sum(each.cpu_seconds() for each in everyone)
        time.sleep(LOOK_S)
        own = sum(each.cpu_seconds() for each in everyone) - own
        if share_of_others(before, clocks(everyone)) <= QUIET and own / LOOK_S <= MAX_ASLEEP:
            return


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds of all processors so far, and those of the engines and of this program."""

    machine: ProcessorTime
    own_s: float


def clocks(everyone: Sequence[Process]) -> Clocks:
    """Now. Raises SystemExit where the machine does not tell."""
    machine = read_processor_time()
    if machine is None:
        raise SystemExit("/proc/stat: expected a first line with steal (Linux)")
    return Clocks(machine, sum(each.cpu_seconds() for each in everyone) + time.process_time())


def share_of_others(before: Clocks, after: Clocks) -> float:
    """The share of the processors that neither slept nor worked for us between two `clocks`."""
    busy_s = after.machine.busy_s - before.machine.busy_s
    total_s = max(after.machine.total_s - before.machine.total_s, 1 / TICKS_PER_S)
    return max(0.0, busy_s - (after.own_s - before.own_s)) / total_s


def share_of_host(before: Clocks, after: Clocks) -> float:
    """The share of the processors that the host stole between two `clocks`."""
    return (after.machine.stolen_percent_since(before.machine) or 0.0) / 100
