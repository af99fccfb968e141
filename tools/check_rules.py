"""The rules of the house that a program can check; a broken one fails lint and the tests.

Usage: check_rules.py [--root DIR] [RULE ...]. Prints `file:line: rule: what` for every breach and
exits with 1 if there is one. A rule is a function from the top folder to its breaches; it never
passes because there is nothing to look at where something must be.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

CORE = (".h", ".cpp", ".cu", ".cuh")
MAX_LINES = 500
MAX_COLUMNS = 100
MAX_HEADER_LINES = 8

# Folder of the including file, most special first -> what it may include, as prefixes.
ALL_BELOW_API = ("base/", "kernels/", "backend/", "model/", "runtime/", "api/", "mmengine/")
ARROWS: dict[str, tuple[str, ...]] = {
    "include/mmengine": ("mmengine/",),
    "csrc/base": ("base/", "mmengine/error.h"),
    "csrc/kernels/ref": ("kernels/ref/", "kernels/*", "base/", "mmengine/error.h"),
    "csrc/kernels/cpu": ("kernels/cpu/", "kernels/*", "base/", "mmengine/error.h"),
    "csrc/kernels/cuda": ("kernels/cuda/", "kernels/*", "base/", "mmengine/error.h"),
    "csrc/kernels": ("kernels/*", "base/", "mmengine/error.h"),
    "csrc/backend": ("backend/", "kernels/", "base/", "mmengine/error.h"),
    "csrc/model": (
        *("model/", "backend/backend.h", "backend/buffer.h", "backend/traits.h"),
        *("kernels/params.h", "base/", "mmengine/error.h"),
    ),
    "csrc/runtime": (
        *("runtime/", "model/", "backend/backend.h", "backend/buffer.h", "backend/traits.h"),
        *("backend/comm.h", "kernels/params.h", "base/", "mmengine/types.h", "mmengine/error.h"),
    ),
    "csrc/api": ALL_BELOW_API,
    "csrc/bindings": ("bindings/", "mmengine/"),
}
# Includes in angle brackets that only some places may have: pattern -> where, as prefixes.
ANGLED: dict[str, tuple[str, ...]] = {
    r"nlohmann/": ("csrc/model/",),
    r"pybind11/|Python\.h": ("csrc/bindings/",),
    r".*intrin\.h": ("csrc/kernels/cpu/",),
    r"cu(da|blas|pti)\w*\.h": ("csrc/kernels/cuda/device_sm90.cuh", "csrc/backend/cuda_"),
}
# The one include of what is not product: device.cuh on a machine without a device.
EMULATOR = {("csrc/kernels/cuda/device.cuh", "emulator/device_emulated.h")}
SHARED_RUNTIME = {"constraint", "sequence"}
SCHEDULER_HALF = {"kv_cache", "mask_worker", "prefix_index", "scheduler"}
RUNNER_HALF = {"batch", "sampler", "speculative", "graph_cache", "plan", "rank", "model_runner"}

FORBIDDEN_IMPORTS = {"torch", "pickle", "cPickle", "dill", "cloudpickle", "marshal", "jinja2"}
FORBIDDEN_CALLS = {"eval", "exec"}
# snprintf and what the C++ runtime calls by itself are not undefined symbols of our own objects.
FORBIDDEN_SYMBOLS = re.compile(
    r"(__)?v?f?d?printf(_chk)?|f?puts|f?putc|putchar|perror|_?_?exit|_Exit|quick_exit|abort"
    r"|__assert_fail|getenv|secure_getenv|_ZSt4c(out|err|log)"
)
# Sources of which a build has either one or the other.
NO_CUDA = "csrc/backend/no_cuda.cpp"
CUDA_PARTS = ("backend", "device")
OF_ONE_BUILD = {
    NO_CUDA: "csrc/backend/cuda_backend.cpp",
    **{f"csrc/backend/cuda_{part}.cpp": NO_CUDA for part in CUDA_PARTS},
}
ENVIRONMENT = re.compile(r"\b(secure_getenv|getenv|setenv|putenv|unsetenv|environ)\b")
RAW_MEMORY = re.compile(
    r"\bnew\b|(?<!=)(?<!= )\bdelete\b"
    r"|(?<![\w.>])(?:malloc|calloc|realloc|aligned_alloc|posix_memalign)\s*\("
)
# Test files that mirror no source file, and what they test instead.
TESTS_OF_SOMETHING_ELSE = {
    "tests/api/test_answers.py": "engine: several answers to one prompt",
    "tests/api/test_cuda.py": "engine: device cuda beside the cpu",
    "tests/api/test_constraints.py": "engine: masks, forced tokens, deadlines, the queue",
    "tests/api/test_conversations.py": "engine: conversations and their parsed answers",
    "tests/api/test_cancel.py": "engine: requests that are given up",
    "tests/api/test_determinism_matrix.py": "engine: one prompt in every kind of company",
    "tests/api/test_pool.py": "engine: a KV pool that is always full",
    "tests/api/test_threads.py": "engine: threads, processes, close at any moment",
    "tests/api/test_determinism.py": "engine: batches, chunks and threads change no bit",
    "tests/api/test_host.py": "engine: what only a host in C++ can do to it",
    "tests/api/test_family.py": "engine: Mistral 3 in every form, FP8 in any company",
    "tests/api/test_kv_dtype.py": "engine: the types of the KV cache",
    "tests/api/test_memory.py": "engine: what loading takes at its peak",
    "tests/api/test_family_inputs.py": "load: damaged checkpoints of the Medium 3.5 family",
    "tests/api/test_mistral_text.py": "engine: text and chat on Mistral's own files",
    "tests/api/test_quality.py": "engine: perplexity of the demo model",
    "tests/api/test_requests.py": "engine: what a bad request is answered",
    "tests/api/test_requests_beside.py": "engine: bad requests beside good ones",
    "tests/api/test_requests_limits.py": "engine: the queue, deadlines, salts",
    "tests/api/test_requests_submit.py": "engine: submit and its pending requests",
    "tests/api/test_penalties.py": "engine: what penalties and bias mean",
    "tests/api/test_prompt_logprobs.py": "engine: log-probabilities of prompts",
    "tests/api/test_structured.py": "engine: schemas, expressions, grammars, forced calls",
    "tests/api/test_structured_waits.py": "engine: what waits while a grammar is compiled",
    "tests/api/test_sampling.py": "engine: what SamplingParams mean",
    "tests/kernels/test_cuda_orders.py": "the cuda backend in every order of threads",
    "tests/kernels/test_emulator.py": "tests/emulator, the device that there is not",
    "tests/kernels/test_pack.py": "packing, done by the backends",
    "tests/kernels/test_parallel.py": "base/parallel, reached through the same module",
    "tests/kernels/test_quant.py": "inputs that stages quantise for the next weight",
    "tests/kernels/test_sample_penalties.py": "sample: bias and penalties",
    "tests/kernels/test_stages.py": "ops of every backend that have no file of their own",
    "tests/model/test_config_family.py": "config: both layouts of the Medium 3.5 family",
    "tests/model/test_fp8.py": "decoder on FP8 linears with quantised inputs",
    "tests/model/test_group_formats.py": "weights: models in int8 and int4",
    "tests/model/test_oracle.py": "decoder against transformers",
    "tests/python/test_bench_peers.py": "tools/bench_peers.py and tools/peers",
    "tests/python/test_cli_model.py": "the installed mm-run with the demo model",
    "tests/python/test_gguf.py": "gguf_reader and convert_gguf together",
    "tests/python/test_grammar_limits.py": "structured: what is refused, and how quickly",
    "tests/python/test_grammar_schemas.py": "structured: random schemas against jsonschema",
    "tests/python/test_llama3_rope.py": "Llama 3's scaling in inspect, verify and convert",
    "tests/runtime/test_mutants.py": "the rules of the simulation, each broken on purpose",
    "tests/runtime/test_protocol.py": "scheduler, cache and a fake model together",
    "tests/support/test_tiny.py": "tools/tiny: what tiny checkpoints hold",
}


@dataclass(frozen=True)
class Breach:
    """One broken rule: `path` is relative to the top folder, `line` counts from 1."""

    path: str
    line: int
    what: str


Rule = Callable[[Path], Iterator[Breach]]


def files(root: Path, folders: str, *suffixes: str) -> Iterator[tuple[Path, str]]:
    """Files below the named folders, sorted: (path, path relative to root with slashes)."""
    for folder in folders.split():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts:
                yield path, path.relative_to(root).as_posix()


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """All that people write by hand except prose: C++, Python, shell, CMake, configuration."""
    code = (*CORE, ".py", ".pyi", ".cmake")
    yield from files(root, "csrc include python tests tools third_party", *code)
    alone = ("tools/dev", ".ci/run", "CMakeLists.txt", "tests/emulator/CMakeLists.txt")
    for name in (*alone, "pyproject.toml"):
        if (root / name).is_file():
            yield root / name, name


def lines_of(path: Path) -> list[str]:
    """Lines of a text file; bytes that are not UTF-8 become surrogates, which are not ASCII."""
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def code_lines(path: Path) -> list[str]:
    """Lines of a C++ file without comments, contents of literals and includes."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    token = re.compile(
        r'R"(?P<d>[^\s()\\]{0,16})\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'|//[^\n]*|/\*.*?\*/|^#\s*include[^\n]*",
        re.DOTALL | re.MULTILINE,
    )
    return token.sub(lambda m: '""' + "\n" * m.group().count("\n"), text).split("\n")


def include_arrows(root: Path) -> Iterator[Breach]:
    """A file includes its own layer or lower ones, by the table of arrows."""
    quoted = re.compile(r'\s*#\s*(?:include|define\s+MM_SIMD)\s+"([^"]+)"')
    angled = re.compile(r"\s*#\s*include\s+<([^>]+)>")
    for path, name in files(root, "csrc include", *CORE):
        folder = next((f for f in ARROWS if name.startswith(f + "/")), None)
        if folder is None:
            yield Breach(name, 1, "lies in no layer")
            continue
        allowed = ARROWS[folder]
        for number, line in enumerate(lines_of(path), 1):
            if match := quoted.match(line):
                included = match.group(1)
                if (name, included) in EMULATOR:
                    continue
                parent = included.rpartition("/")[0] + "/*"
                if not included.startswith(allowed) and parent not in allowed:
                    yield Breach(name, number, f'{folder} may not include "{included}"')
                elif breach := crosses_halves(name, included):
                    yield Breach(name, number, breach)
            elif match := angled.match(line):
                included = match.group(1)
                if folder == "include/mmengine" and not re.fullmatch(
                    r"[a-z_0-9]+|std(def|int|bool)\.h", included
                ):
                    yield Breach(name, number, f"<{included}> is not of the standard library")
                for pattern, places in ANGLED.items():
                    if re.match(pattern, included) and not name.startswith(places):
                        yield Breach(name, number, f"<{included}> belongs to {places[0]} only")
            elif re.match(r"\s*#\s*include(?!\s+MM_SIMD$)", line):
                yield Breach(name, number, "an include that names no file")


def crosses_halves(name: str, included: str) -> str | None:
    """What is wrong when a file of csrc/runtime includes another one, or None."""
    if not (name.startswith("csrc/runtime/") and included.startswith("runtime/")):
        return None
    own, other = Path(name).stem, Path(included).stem
    halves = {"scheduler": SCHEDULER_HALF, "runner": RUNNER_HALF}
    if own in SHARED_RUNTIME and other not in SHARED_RUNTIME:
        return f'what both halves share may not include "{included}"'
    for half, members in halves.items():
        if own in members and other not in members | SHARED_RUNTIME:
            return f'the {half} half may not include "{included}"'
    return None


def runtime_halves(root: Path) -> Iterator[Breach]:
    """Every file of csrc/runtime belongs to the scheduler half, the runner half or both."""
    for _, name in files(root, "csrc/runtime", ".h", ".cpp"):
        if Path(name).stem not in SHARED_RUNTIME | SCHEDULER_HALF | RUNNER_HALF:
            yield Breach(name, 1, "is in neither half; name its half in tools/check_rules.py")


def file_length(root: Path) -> Iterator[Breach]:
    """No source file is longer than 500 lines."""
    for path, name in sources(root):
        count = len(lines_of(path)) - 1
        if count > MAX_LINES:
            yield Breach(name, MAX_LINES + 1, f"{count} lines, expected at most {MAX_LINES}")


def line_length(root: Path) -> Iterator[Breach]:
    """No source line is longer than 100 columns."""
    for path, name in sources(root):
        for number, line in enumerate(lines_of(path), 1):
            if len(line) > MAX_COLUMNS and path.suffix != ".toml":
                yield Breach(name, number, f"{len(line)} columns, expected at most {MAX_COLUMNS}")


def ascii_only(root: Path) -> Iterator[Breach]:
    """Sources are ASCII; other characters are written as escapes."""
    for path, name in sources(root):
        for number, line in enumerate(lines_of(path), 1):
            if not line.isascii():
                column = next(i for i, c in enumerate(line, 1) if ord(c) > 127)
                yield Breach(name, number, f"non-ASCII character in column {column}")


def file_header(root: Path) -> Iterator[Breach]:
    """A file opens with a comment or docstring; of x.h and x.cpp the header speaks for both."""
    for path, name in sources(root):
        lines = lines_of(path)
        if lines[0].startswith("#!"):
            lines = lines[1:]
        if path.suffix in CORE and not (path.suffix == ".cpp" and path.with_suffix(".h").is_file()):
            count = next((i for i, line in enumerate(lines) if not line.startswith("//")), 0)
            if not 1 <= count <= MAX_HEADER_LINES:
                what = f"opens with {count} lines of comment, expected 1 to {MAX_HEADER_LINES}"
                yield Breach(name, 1, what)
        elif path.suffix == ".py":
            if not lines[0].startswith(('"""', 'r"""')):
                yield Breach(name, 1, "opens without a docstring")
        elif path.suffix not in (*CORE, ".toml") and not lines[0].startswith(("#", '"""')):
            yield Breach(name, 1, "opens without a comment")


def no_environment(root: Path) -> Iterator[Breach]:
    """The core reads no environment variables."""
    for path, name in files(root, "csrc include", *CORE):
        for number, line in enumerate(code_lines(path), 1):
            if match := ENVIRONMENT.search(line):
                yield Breach(name, number, f"{match.group()}: options arrive as arguments")


def no_raw_memory(root: Path) -> Iterator[Breach]:
    """Only base and backend allocate by hand."""
    for path, name in files(root, "csrc include", *CORE):
        if name.startswith(("csrc/base/", "csrc/backend/")):
            continue
        for number, line in enumerate(code_lines(path), 1):
            if match := RAW_MEMORY.search(line):
                yield Breach(name, number, f"raw {match.group()}: use containers or unique_ptr")


def cuda_sources(root: Path) -> Iterator[Breach]:
    """What makes a kernel run on the emulator, too, and says that it never ran on a device."""
    banned = {
        r"\basm\b": ("device_sm90.cuh",),
        r"<<<": (),
        r"^\s*#\s*(if|ifdef|ifndef|else|elif|endif)\b": ("device.cuh",),
        r"\b__(global|device|shared|launch_bounds|syncthreads|syncwarp)(__)?\b|\b__shfl": (
            "device_sm90.cuh",
        ),
    }
    for path, name in files(root, "csrc/kernels/cuda", ".h", ".cu", ".cuh"):
        for number, line in enumerate(code_lines(path), 1):
            for pattern, places in banned.items():
                if path.name not in places and (match := re.search(pattern, line)):
                    what = f"{match.group().strip()}: use what device.cuh offers"
                    yield Breach(name, number, what)
        head = " ".join(line.strip("/ ") for line in lines_of(path)[:MAX_HEADER_LINES])
        if path.suffix == ".cu" and "never run on a device" not in head.lower():
            yield Breach(name, 1, "its header does not say 'Never run on a device'")


def python_rules(root: Path) -> Iterator[Breach]:
    """core.py and forecast.py alone import _core, errors.py defines errors; nothing unsafe."""
    for path, name in files(root, "python/mmengine", ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name.split(".") for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    package = (node.module or "").split(".")
                    modules = [package + module for module in modules]
                if unsafe := {module[0] for module in modules} & FORBIDDEN_IMPORTS:
                    yield Breach(name, node.lineno, f"import of {', '.join(sorted(unsafe))}")
                core = any("_core" in module for module in modules)
                if core and path.name not in ("core.py", "forecast.py"):
                    yield Breach(name, node.lineno, "only core.py and forecast.py import _core")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in FORBIDDEN_CALLS:
                    yield Breach(name, node.lineno, f"{node.func.id}() is not allowed")
            elif isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = [ast.unparse(base) for base in node.bases]
                if any(base.endswith(("Error", "Exception")) for base in bases):
                    yield Breach(name, node.lineno, f"{node.name}: errors live in errors.py")


def forbidden_symbols(root: Path) -> Iterator[Breach]:
    """The library's objects neither print, exit, abort nor read the environment."""
    for _, name in files(root, "csrc", ".cpp"):
        layer = name.split("/")[1]
        if layer == "bindings":
            continue
        built = root / "build/py/CMakeFiles" / f"mm_{layer}.dir" / f"{name}.o"
        other = OF_ONE_BUILD.get(name)
        if other and (root / "build/py/CMakeFiles/mm_backend.dir" / f"{other}.o").is_file():
            continue
        if not built.is_file():
            yield Breach(name, 1, "has no object in build/py; run tools/dev build")
            continue
        command = ["nm", "--undefined-only", "--format=posix", str(built)]
        symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for line in symbols.splitlines():
            symbol = line.split(" ")[0]
            if FORBIDDEN_SYMBOLS.fullmatch(symbol):
                yield Breach(name, 1, f"its object refers to {symbol}")


def compile_alone(root: Path, name: str, options: list[str]) -> Breach | None:
    """Compile a header by itself: None, or the compiler's first error.

    It is compiled to an object, because that is what ccache remembers.
    """
    source = root / "build" / "headers" / f"{name.replace('/', '_')}.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    text = f'#include "{name}"\n'
    if not source.is_file() or source.read_text(encoding="utf-8") != text:
        source.write_text(text, encoding="utf-8")
    launcher = [ccache] if (ccache := shutil.which("ccache")) else []
    command = [*launcher, os.environ.get("CXX", "g++"), "-Wall", "-Wextra", "-Werror", "-I."]
    command += ["-Iinclude", *options, "-c", "-o", f"{source}.o", str(source.relative_to(root))]
    cached = {"CCACHE_BASEDIR": str(root), "CCACHE_NOHASHDIR": "1"}
    words = {**os.environ, **cached, "LC_ALL": "C"}
    result = subprocess.run(command, cwd=root, env=words, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    return Breach(name, 1, (errors or result.stderr.splitlines() or ["compiler failed"])[0])


def system_includes(root: Path) -> list[str]:
    """Options that find the headers of third parties, as the build of the package finds them."""
    commands = root / "build" / "py" / "compile_commands.json"
    if not commands.is_file():
        return []
    entries = json.loads(commands.read_text(encoding="utf-8"))
    words = [shlex.split(entry["command"]) for entry in entries]
    pairs = {pair for line in words for pair in pairwise(line) if pair[0] == "-isystem"}
    return [word for pair in sorted(pairs) for word in pair]


def headers_alone(root: Path) -> Iterator[Breach]:
    """Every header compiles by itself: public ones as C++17, the others as C++20."""
    jobs: list[tuple[str, list[str]]] = []
    core = ["-std=c++20", "-Icsrc", *system_includes(root)]
    for _, name in files(root, "include csrc", ".h"):
        options = ["-std=c++17"] if name.startswith("include/") else list(core)
        if name.startswith("csrc/kernels/cpu/"):
            options += ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq"]
            options += ["-mavx512vl", "-mavx512vnni"]
            # of what a *_impl.h is made
            options.append('-DMM_SIMD="kernels/cpu/simd_scalar.h"')
        jobs.append((name, options))
    emulated = [*core, "-Itests", "-DMM_CUDA_EMULATED", "-xc++", "-Wno-unknown-pragmas"]
    for path, name in files(root, "csrc/kernels/cuda", ".cuh"):
        if path.name != "device_sm90.cuh":
            jobs.append((name, emulated))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from filter(None, pool.map(lambda job: compile_alone(root, *job), jobs))


def changelog(root: Path) -> Iterator[Breach]:
    """CHANGELOG.md has an Unreleased section."""
    path = root / "CHANGELOG.md"
    if not path.is_file() or not re.search(r"^## \[?Unreleased", path.read_text("utf-8"), re.M):
        yield Breach("CHANGELOG.md", 1, "has no section '## Unreleased'")


def test_names(root: Path) -> Iterator[Breach]:
    """tests/<layer>/test_<file>.py and tests/native/<name>.cpp mirror what they test."""
    for path, name in files(root, "tests", ".py", ".cpp"):
        layer = path.parent.name
        if path.suffix == ".cpp":
            tested = path.stem.partition("_")[0]  # a layer, or a folder of kernels
            folders = [root / "csrc" / tested, root / "csrc" / "kernels" / tested]
            if layer == "native" and not any(folder.is_dir() for folder in folders):
                yield Breach(name, 1, f"expected the name of a layer, got {path.stem}")
            continue
        if not path.name.startswith("test_") or name in TESTS_OF_SOMETHING_ELSE:
            continue
        stem = path.stem.removeprefix("test_")
        if layer == "rules":
            names = (f"check_{stem}.py", f"{stem}.py")
            found = any((root / "tools" / name).is_file() for name in names)
        elif layer == "python":
            found = any((root / "python" / "mmengine").rglob(f"{stem}.py"))
        elif (root / "csrc" / layer).is_dir():
            found = any((root / "csrc" / layer).rglob(f"{stem}.*"))
        else:
            found = any(path.parent.glob(f"{stem}*"))
        if not found:
            what = f"mirrors no file of {layer}; rename it or list it in TESTS_OF_SOMETHING_ELSE"
            yield Breach(name, 1, what)


RULES: tuple[Rule, ...] = (
    *(include_arrows, runtime_halves, file_length, line_length, ascii_only, file_header),
    *(no_environment, no_raw_memory, cuda_sources, python_rules, forbidden_symbols, headers_alone),
    *(changelog, test_names),
)


def main(arguments: list[str] | None = None) -> int:
    """Check the rules named on the command line, or all; 0 when they hold, 1 when not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    names = [rule.__name__ for rule in RULES]
    parser.add_argument("rules", nargs="*", metavar="RULE", help=f"of: {', '.join(names)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.rules) - set(names):
        parser.error(f"unknown rule {sorted(unknown)[0]!r}, expected one of {', '.join(names)}")
    broken = 0
    for rule in RULES:
        if not options.rules or rule.__name__ in options.rules:
            for breach in rule(options.root):
                print(f"{breach.path}:{breach.line}: {rule.__name__}: {breach.what}")
                broken += 1
    if broken == 0:
        print(f"{len(options.rules) or len(RULES)} rules hold")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
