"""Each rule of the simulation is seen broken: mutants.toml lists changes to csrc/runtime that break
one, and the simulation, built with such a change, must report it. Needs a C++ compiler only.

What does not change is compiled once; a mutant costs one file, a link and some hundred workloads.
"""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
RUNTIME = TOP / "csrc/runtime"
MUTANTS = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text("utf-8"))["mutant"]
MUTATED = ("batch", "constraint", "kv_cache", "prefix_index", "sampler", "scheduler", "sequence")
BELOW = ("csrc/backend/buffer.cpp", "csrc/base/check.cpp", "csrc/kernels/ref/step.cpp")
HEADERS = ("base/check.h", "runtime/batch.h", "runtime/sampler.h", "runtime/scheduler.h")
# Assertions of the library end a mutant that reads outside of a vector, after what it told so far.
FLAGS = ("-std=c++20", "-O1", "-D_GLIBCXX_ASSERTIONS", "-Icsrc", "-Iinclude", "-Itests/native")
WORKLOADS, SECONDS = 400, 60


@dataclass
class Told:
    """What a program found: rules that were broken, and the end of its output."""

    rules: set[str]
    text: str


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    assert found, "no C++ compiler; apt install g++, or set CXX"
    return found


def compile_file(source: Path, target: Path, *options: str) -> None:
    """Compile a file as if it lay in the top folder; a failure shows the compiler's words."""
    command = [compiler(), *FLAGS, *options, "-c", "-o", str(target), str(source)]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert result.returncode == 0, f"{source.name}: {result.stderr[:3000]}"


def run(program: Path, first: int) -> Told:
    command = [str(program), str(first), str(WORKLOADS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        text = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:  # a mutant may never end; what it told counts
        text = (late.stdout or b"").decode()
    rows = [line.split("\t") for line in text.splitlines()]
    return Told({row[2] for row in rows if len(row) == 4}, text[-2000:])


def edits_of(mutant: dict) -> dict[str, str]:
    """The changed files of a mutant: name -> text."""
    texts: dict[str, str] = {}
    for edit in mutant.get("edits", [mutant]):
        name = edit["file"]
        text = texts.get(name) or (RUNTIME / name).read_text("utf-8")
        count = text.count(edit["old"])
        assert count == 1, f"{name} has {count} times, expected once: {edit['old']!r}"
        texts[name] = text.replace(edit["old"], edit["new"])
    return texts


class Workshop:
    """Objects of the unchanged program, and what every program told."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, mutants: list[dict]) -> None:
        self.folder = folder
        simulation = sorted((TOP / "tests/native/simulation").glob("*.cpp"))
        runtime = [RUNTIME / f"{name}.cpp" for name in MUTATED]
        sources = [*simulation, *runtime, *(TOP / name for name in BELOW)]
        self.objects = {source.name: folder / f"{source.stem}.o" for source in sources}
        # What all include is read once: that is most of the time it takes to compile such a file.
        common = folder / "common.h"
        common.write_text("".join(f'#include "{header}"\n' for header in HEADERS), "utf-8")
        compile_file(common, folder / "common.h.gch", "-x", "c++-header")
        self.options = ("-include", str(common))
        list(pool.map(self.compile_unchanged, sources))
        self.unchanged = self.link_and_run("unchanged", {})
        self.tasks = {m["name"]: pool.submit(self.make, i, m) for i, m in enumerate(mutants)}

    def compile_unchanged(self, source: Path) -> None:
        compile_file(source, self.objects[source.name], *self.options)

    def make(self, number: int, mutant: dict) -> Told:
        changed = {}
        for name, text in edits_of(mutant).items():
            source = self.folder / f"{number}_{name}"
            source.write_text(text, "utf-8")
            changed[name] = source.with_suffix(".o")
            compile_file(source, changed[name], *self.options)
        return self.link_and_run(str(number), changed, mutant.get("first", 1))

    def link_and_run(self, name: str, changed: dict[str, Path], first: int = 1) -> Told:
        program = self.folder / name
        objects = {**self.objects, **changed}.values()
        subprocess.run([compiler(), *map(str, objects), "-o", str(program)], check=True)
        return run(program, first)


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Workshop]:
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    mutants = [call.params["mutant"] for call in selected if call and "mutant" in call.params]
    with ThreadPoolExecutor(2) as pool:
        yield Workshop(tmp_path_factory.mktemp("mutants"), pool, mutants)
        pool.shutdown(cancel_futures=True)


def test_the_unchanged_program_breaks_no_rule(workshop):
    assert workshop.unchanged.rules == set(), workshop.unchanged.text
    assert f"workloads {WORKLOADS}" in workshop.unchanged.text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["name"].replace(" ", "-"))
def test_a_broken_rule_is_noticed(mutant, workshop):
    told = workshop.tasks[mutant["name"]].result()
    breaks = set(mutant["breaks"])
    assert breaks <= told.rules, (
        f"told {sorted(told.rules)}, expected {mutant['breaks']}\n{told.text}"
    )
    if mutant.get("only"):
        assert told.rules == breaks, told.text


def test_every_rule_is_broken_by_a_mutant():
    from mmengine._testing_runtime import rules

    broken = {rule for mutant in MUTANTS for rule in mutant["breaks"]}
    assert broken == set(rules())
