"""All that a machine with a Hopper GPU can prove of the CUDA backend: tools/dev gpu.

Works without a network: what is missing of Python packages is taken from build/wheels, where a
machine with a network may have put them, else named. Builds into build/gpu-venv, which sees the
packages of the Python it was made by. Each part has a time limit, and all end within 9 minutes; a
part that fails, or cannot run for want of something, does not keep the next one from running.
Prints one table; the exit code is 0 only where every part ran and passed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 530.0
NEEDED_CAPABILITY = "9.0"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
NO_GPU = (
    "no NVIDIA GPU on this machine; tools/dev gpu needs one of compute capability 9.0 (H100, H200)"
)


class NotRunError(Exception):
    """A part that cannot run here; the message says what is missing and where it comes from."""


class FailedError(Exception):
    """A part that ran and did not pass."""


@dataclass(frozen=True)
class Result:
    """One line of the table: `state` is passed, FAILED or NOT RUN."""

    part: str
    state: str
    seconds: float
    what: str


def find_gpu(devices: Path = Path("/dev")) -> str | None:
    """`name, capability, memory, driver` of the first GPU, its device file, or None."""
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    if program := shutil.which("nvidia-smi"):
        command = [program, query, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if done.returncode == 0 and lines:
            return lines[0]
    files = sorted(devices.glob("nvidia[0-9]*"))
    return str(files[0]) if files else None


def wrong_capability(gpu: str) -> str | None:
    """What is wrong with a GPU of another architecture; None where nvidia-smi did not tell."""
    fields = [field.strip() for field in gpu.split(",")]
    if len(fields) < 2 or fields[1] == NEEDED_CAPABILITY:
        return None
    return (
        f"{fields[0]}: compute capability {fields[1]}, expected {NEEDED_CAPABILITY} (H100, H200):"
        " the kernels are compiled for sm_90a alone"
    )


class Runner:
    """Runs parts, each within its own limit and all within one, and keeps what became of them."""

    def __init__(self, logs: Path, total_seconds: float = TOTAL_SECONDS) -> None:
        self.logs = logs
        self.deadline = time.monotonic() + total_seconds
        self.results: list[Result] = []
        self.log = logs / "none"
        logs.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, work: Callable[[], str]) -> bool:
        """Does `work`, which returns its closing words; True where it passed."""
        print(f"{name} ... ", end="", flush=True)
        self.log = self.logs / re.sub(r"\W+", "-", name)
        self.log.write_bytes(b"")
        start = time.monotonic()
        try:
            state, what = "passed", work()
        except NotRunError as missing:
            state, what = "NOT RUN", str(missing)
        except FailedError as failure:
            state, what = "FAILED", str(failure)
        seconds = time.monotonic() - start
        print(f"{state}, {seconds:.1f} s: {what}", flush=True)
        if state == "FAILED":
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
            print("\n".join(f"  | {line}" for line in tail), flush=True)
        self.results.append(Result(name, state, seconds, what))
        return state == "passed"

    def run(
        self, command: Sequence[str | Path], seconds: float, env: Mapping[str, str] | None = None
    ) -> str:
        """Runs a command to its end, output into the part's log; returns what it wrote.

        FailedError: another exit code than 0, or the time was over, which ends its whole group.
        """
        left = min(seconds, self.deadline - time.monotonic())
        if left <= 0:
            raise NotRunError("no time was left; all parts together may take 9 minutes")
        begin = self.log.stat().st_size if self.log.exists() else 0
        words = [str(word) for word in command]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                env={**os.environ, **(env or {})}, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                raise FailedError(f"stopped after {left:.0f} s") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        output = self.log.read_bytes()[begin:].decode("utf-8", errors="replace")
        if code:
            raise FailedError(f"exit code {code}: {' '.join(words[:4])} ...; log in {self.log}")
        return output

    def table(self) -> str:
        """One line per part, and their time together."""
        width = max((len(result.part) for result in self.results), default=4)
        lines = [
            f"{result.part:<{width}}  {result.state:<7}  {result.seconds:6.1f} s  {result.what}"
            for result in self.results
        ]
        total = sum(result.seconds for result in self.results)
        return "\n".join([*lines, f"{'together':<{width}}  {'':7}  {total:6.1f} s"])


def requirements() -> dict[str, list[str]]:
    """What pyproject.toml lists: purpose -> distributions, without versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table = project["project"]
    lists = {
        "building": [*project["build-system"]["requires"], "pip"],
        "the package": table["dependencies"],
        "the tests": table["optional-dependencies"]["dev"],
    }
    not_needed = {"ruff", "mypy", "clang-format", "matplotlib"}
    return {
        purpose: [
            name
            for line in lines
            if (name := re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]) not in not_needed
        ]
        for purpose, lines in lists.items()
    }


# Prints which of the named distributions, and of those that they need, are not installed.
PRINT_MISSING = """
import importlib.metadata, re, sys
try:
    from pip._vendor.packaging.requirements import Requirement
except ImportError:
    Requirement = None
names, seen = sys.argv[1:], set()
while names:
    name = names.pop()
    if name in seen:
        continue
    seen.add(name)
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        print(name)
        continue
    for line in needs:
        if Requirement is None:
            names += [] if ";" in line else [re.match(r"[\\w.-]+", line)[0]]
        elif (need := Requirement(line)).marker is None or need.marker.evaluate({"extra": ""}):
            names.append(need.name)
"""


def missing_packages(python: Path) -> dict[str, list[str]]:
    """Of those, and of what they need, what this interpreter has not: purpose -> distributions."""
    found: dict[str, list[str]] = {}
    for purpose, names in requirements().items():
        command = [str(python), "-c", PRINT_MISSING, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if names := sorted(set(done.stdout.split())):
            found[purpose] = names
    return found


def make_environment(runner: Runner, folder: Path) -> str:
    """build/gpu-venv over the packages of .venv, or of this Python; then wheels of build/wheels."""
    own = ROOT / ".venv" / "bin" / "python"
    works = own.exists() and subprocess.run([own, "-c", ""], check=False).returncode == 0
    parent = own if works else Path(sys.executable)
    python = folder / "bin" / "python"
    if not python.exists():
        runner.run([parent, "-m", "venv", "--without-pip", folder], 60)
    # A .pth file and not --system-site-packages, which passes over the packages of a parent venv.
    words = "import sysconfig as s; print(*{s.get_path('purelib'), s.get_path('platlib')}, sep=':')"
    folders, site = (runner.run([p, "-c", words], 20).strip() for p in (parent, python))
    lines = [
        f"import site; site.addsitedir({path!r})"  # and not the bare path: it may hold .pth files
        for path in folders.split(":")
    ]
    (Path(site.split(":")[0]) / "parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    wheels = ROOT / "build" / "wheels"
    install = [python, "-m", "pip", "install", "--no-index", "--find-links", wheels]
    missing = missing_packages(python)
    if missing and wheels.is_dir():
        names = sorted({name for names in missing.values() for name in names})
        for some in (names, *([name] for name in names)):  # one by one where one cannot be had
            with contextlib.suppress(FailedError):  # what stays missing is named below
                runner.run([*install, *some], 60)
                if some == names:
                    break
        missing = missing_packages(python)
    if not missing:
        return f"all packages are there; over {parent}"
    lacking = " ".join(sorted({name for names in missing.values() for name in names}))
    text = "; ".join(f"{purpose} lacks {', '.join(names)}" for purpose, names in missing.items())
    remedy = f"on a machine with a network: pip download -d build/wheels {lacking}"
    if "building" in missing:
        raise FailedError(f"{text}; {remedy}")
    return f"{text} ({remedy})"


def build(runner: Runner, folder: Path) -> str:
    """The package with CUDA and the private test modules into build/gpu-venv."""
    python = folder / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('scripts'))"
    scripts = [str(folder / "bin"), str(Path(sys.executable).parent), str(ROOT / ".venv" / "bin")]
    scripts.append(runner.run([sys.executable, "-c", script], 20).strip())
    paths = [*scripts, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    environment = {"PATH": os.pathsep.join(paths)}
    for program in ("g++", "nvcc", "cmake", "ninja"):
        if not shutil.which(program, path=environment["PATH"]):
            raise NotRunError(f"{program} is missing")
    settings = ["build-dir=build/gpu"]
    settings += [f"cmake.define.{name}=ON" for name in ("MM_TESTS", "MM_CUDA", "MM_BENCH")]
    if shutil.which("ccache"):
        environment |= {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
        launchers = ("CMAKE_CXX_COMPILER_LAUNCHER", "CMAKE_CUDA_COMPILER_LAUNCHER")
        settings += [f"cmake.define.{launcher}=ccache" for launcher in launchers]
    options = [f"--config-settings={setting}" for setting in settings]
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    runner.run([*install, *options, "."], 240, environment)
    return f"installed into {folder.relative_to(ROOT)}"


def kernel_tests(runner: Runner, python: Path) -> str:
    """Kernels and backends on every backend present, cuda among them, and whole tiny engines."""
    words = "from mmengine import _testing_kernels as t; print(*t.backends())"
    backends = runner.run([python, "-c", words], 60).split()
    if "cuda" not in backends:
        raise NotRunError(f"this build has no backend 'cuda', only {', '.join(backends)}")
    names = ("tests/kernels", "tests/backend", "tests/api/test_cuda.py")
    paths = [name for name in names if (ROOT / name).exists()]
    pytest = [python, "-m", "pytest", "-q", "-m", "not oracle and not model", *paths]
    output = runner.run(pytest, 240, {"MMENGINE_OFFLINE": "1"})
    return output.strip().splitlines()[-1].strip("= ")


def sanitize(runner: Runner, python: Path, tool: str) -> str:
    """One tool of compute-sanitizer over a tiny model in every type of weights and KV."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if not program:
        packages = "the toolkit's cuda-sanitizer-13-0 or pip's nvidia-cuda-sanitizer-api"
        raise NotRunError(f"compute-sanitizer is missing: {packages}")
    options = ["--tool", tool, "--error-exitcode", "99", "--print-limit", "10"]
    output = runner.run([program, *options, python, ROOT / "tools" / "gpu_small.py"], 60)
    last = [line for line in output.splitlines() if "ERROR SUMMARY" in line or "RACECHECK" in line]
    return last[-1].strip("= ") if last else "no summary line"


def agree(runner: Runner, python: Path) -> str:
    """Logits of 2,000 positions beside those of the cpu, of the demo model where it is here."""
    models = ("smollm2", "synthetic:llama-3.2-1b")
    command = [python, ROOT / "tools" / "compare_devices.py", *models]
    output = runner.run(command, 120, {"PIP_NO_INDEX": "1"})
    return output.strip().splitlines()[-1]


def bench_ops(runner: Runner) -> str:
    """Products and attention of the 128B model, beside what the device was measured to do."""
    program = ROOT / "build" / "gpu" / "bench_kernels"  # no part of the package
    return "\n" + runner.run([program, "cuda"], 120).rstrip()


def bench(runner: Runner, folder: Path) -> str:
    """Speed of a 1B-shaped model; the lines of mm-run bench follow the part's own."""
    options = ["-m", "synthetic:llama-3.2-1b", "--device", "cuda", "--weight-dtype", "fp8"]
    sizes = ["--prompt-tokens", "512", "--batch", "1,8,64", "--gen-tokens", "64", "--repeat", "3"]
    output = runner.run([folder / "bin" / "mm-run", "bench", *options, *sizes], 120)
    return "\n" + output.rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Run every part; 0 where all passed, else 1."""
    parser = argparse.ArgumentParser(
        prog="tools/dev gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.parse_args(arguments)
    gpu = find_gpu()
    if gpu is None or (wrong := wrong_capability(gpu)):
        print(f"tools/dev gpu: {NO_GPU if gpu is None else wrong}", file=sys.stderr)
        return 1
    print(f"GPU: {gpu}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running part ends, too
    runner = Runner(ROOT / "build" / "gpu-log")
    folder = ROOT / "build" / "gpu-venv"
    python = folder / "bin" / "python"
    ready = runner.part("packages", lambda: make_environment(runner, folder))
    if ready and runner.part("build", lambda: build(runner, folder)):
        runner.part("tests", lambda: kernel_tests(runner, python))
        for tool in SANITIZERS:
            runner.part(tool, partial(sanitize, runner, python, tool))
        runner.part("agreement", lambda: agree(runner, python))
        runner.part("ops", lambda: bench_ops(runner))
        runner.part("bench", lambda: bench(runner, folder))
    print(runner.table())
    return int(any(result.state != "passed" for result in runner.results))


if __name__ == "__main__":
    sys.exit(main())
