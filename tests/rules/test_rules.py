"""The house rules hold in this tree, and each rule notices a tree that breaks it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# A small tree in which every rule holds.
GOOD = {
    "CHANGELOG.md": "# Changes\n\n## Unreleased\n",
    "CMakeLists.txt": "# Builds it.\n",
    "include/mmengine/types.h": "// Plain values.\n#pragma once\n#include <string>\n",
    "csrc/base/text.h": "// Text.\n#pragma once\n#include <string>\n",
    "csrc/kernels/params.h": '// Contract.\n#pragma once\n#include "base/text.h"\n',
    "csrc/kernels/ref/launch.h": '// Launchers.\n#pragma once\n#include "kernels/params.h"\n',
    "csrc/kernels/cuda/launch.h": '// Words.\n#pragma once\n#include "kernels/params.h"\n',
    "csrc/kernels/cuda/norm.cu": "// Norms. Never run\n// on a device.\nint n = 1 << 2;\n",
    "csrc/backend/backend.h": '// Ops.\n#pragma once\n#include "kernels/params.h"\n',
    "csrc/model/config.h": '// Config.\n#pragma once\n#include "backend/backend.h"\n',
    "csrc/runtime/sequence.h": '// Words.\n#pragma once\n#include "mmengine/types.h"\n',
    "csrc/runtime/kv_cache.h": '// Blocks.\n#pragma once\n#include "runtime/sequence.h"\n',
    "csrc/runtime/rank.h": '// Device.\n#pragma once\n#include "runtime/sequence.h"\n',
    "python/mmengine/core.py": '"""Core."""\n\nfrom mmengine import _core\n\nprint(_core)\n',
    "python/mmengine/errors.py": '"""Errors."""\n\n\nclass OddError(Exception):\n    """Odd."""\n',
    "tests/model/test_config.py": '"""Config."""\n',
}

CPP = "// Job.\n"
HEADER = "// Job.\n#pragma once\n"
PY = '"""Job."""\n'


def including(name: str) -> str:
    return f'{HEADER}#include "{name}"\n'


# rule, file, its text, line of the breach, a part of the message
BAD = [
    ("include_arrows", "csrc/base/a.h", including("model/config.h"), 3, "may not"),
    ("include_arrows", "csrc/base/a.h", including("mmengine/types.h"), 3, "may not"),
    ("include_arrows", "csrc/kernels/params.h", including("backend/x.h"), 3, "may not"),
    ("include_arrows", "csrc/kernels/ref/a.h", including("kernels/cpu/a.h"), 3, "ref"),
    ("include_arrows", "csrc/kernels/cpu/a.h", including("kernels/ref/a.h"), 3, "cpu"),
    ("include_arrows", "csrc/kernels/cuda/a.cu", including("kernels/ref/a.h"), 3, "cuda"),
    ("include_arrows", "csrc/kernels/cuda/a.h", including("emulator/device_emulated.h"), 3, "cuda"),
    ("include_arrows", "csrc/kernels/cuda/a.h", HEADER + "#include <cuda_fp8.h>\n", 3, "sm90"),
    ("include_arrows", "csrc/kernels/a.h", including("kernels/ref/a.h"), 3, "may not"),
    ("include_arrows", "csrc/backend/a.h", including("model/config.h"), 3, "may not"),
    ("include_arrows", "csrc/model/a.h", including("kernels/ref/launch.h"), 3, "launch"),
    ("include_arrows", "csrc/model/a.h", including("backend/comm.h"), 3, "comm"),
    ("include_arrows", "csrc/model/a.h", including("runtime/rank.h"), 3, "runtime"),
    ("include_arrows", "csrc/runtime/rank.h", including("api/engine.h"), 3, "api"),
    ("include_arrows", "csrc/runtime/rank.h", including("runtime/kv_cache.h"), 3, "half"),
    ("include_arrows", "csrc/runtime/kv_cache.h", including("runtime/rank.h"), 3, "half"),
    ("include_arrows", "csrc/runtime/sequence.h", including("runtime/rank.h"), 3, "both"),
    ("include_arrows", "csrc/api/a.h", including("bindings/a.h"), 3, "may not"),
    ("include_arrows", "csrc/bindings/a.cpp", CPP + '#include "api/engine.h"\n', 2, "may not"),
    ("include_arrows", "include/mmengine/a.h", including("base/text.h"), 3, "may not"),
    ("include_arrows", "include/mmengine/a.h", HEADER + "#include <sys/mman.h>\n", 3, "standard"),
    ("include_arrows", "csrc/api/a.cpp", CPP + "#include <pybind11/pybind11.h>\n", 2, "bindings"),
    ("include_arrows", "csrc/base/a.cpp", CPP + "#include <nlohmann/json.hpp>\n", 2, "model"),
    ("include_arrows", "csrc/kernels/ref/a.cpp", CPP + "#include <immintrin.h>\n", 2, "cpu"),
    ("include_arrows", "csrc/extra/a.h", HEADER, 1, "no layer"),
    ("include_arrows", "csrc/base/a.cpp", CPP + "#include NAME\n", 2, "names no file"),
    ("include_arrows", "csrc/base/a.cpp", CPP + '#define MM_SIMD "model/a.h"\n', 2, "may not"),
    ("runtime_halves", "csrc/runtime/helper.h", HEADER, 1, "neither half"),
    ("file_length", "csrc/base/a.cpp", CPP + "//\n" * 500, 501, "501 lines"),
    ("line_length", "csrc/base/a.cpp", CPP + "//" + "x" * 99 + "\n", 2, "101 columns"),
    ("ascii_only", "python/mmengine/a.py", PY + "# caf\u00e9\n", 2, "column 6"),
    ("file_header", "csrc/base/a.cpp", "int a;\n", 1, "0 lines"),
    ("file_header", "csrc/base/a.h", "// x\n" * 9 + "#pragma once\n", 1, "9 lines"),
    ("file_header", "python/mmengine/a.py", "import os\n", 1, "docstring"),
    ("file_header", "tools/dev", "#!/bin/bash\nset -e\n", 1, "comment"),
    ("no_environment", "csrc/base/a.cpp", CPP + 'auto a = getenv("A");\n', 2, "getenv"),
    ("no_raw_memory", "csrc/model/a.cpp", CPP + "int* a = new int;\n", 2, "new"),
    ("no_raw_memory", "csrc/model/a.cpp", CPP + "void f(int* a) { delete a; }\n", 2, "delete"),
    ("no_raw_memory", "csrc/model/a.cpp", CPP + "void* a = std::malloc(1);\n", 2, "malloc"),
    ("no_raw_memory", "csrc/kernels/cuda/a.cu", CPP + "int* a = new int;\n", 2, "new"),
    ("cuda_sources", "csrc/kernels/cuda/a.cuh", CPP + '  asm volatile("nop;");\n', 2, "asm"),
    ("cuda_sources", "csrc/kernels/cuda/a.cuh", CPP + "void f() { k<<<1, 2>>>(); }\n", 2, "<<<"),
    ("cuda_sources", "csrc/kernels/cuda/a.h", CPP + "#ifdef A\n", 2, "#ifdef"),
    ("cuda_sources", "csrc/kernels/cuda/a.cuh", CPP + "__device__ int f();\n", 2, "device.cuh"),
    ("cuda_sources", "csrc/kernels/cuda/device_sm90.cuh", CPP + "#else\n", 2, "#else"),
    ("cuda_sources", "csrc/kernels/cuda/a.cu", CPP + "int a;\n", 1, "Never run on a device"),
    ("python_rules", "python/mmengine/a.py", PY + "from mmengine._core import x\n", 2, "core.py"),
    ("python_rules", "python/mmengine/a.py", PY + "from . import _core\n", 2, "core.py"),
    ("python_rules", "python/mmengine/a.py", PY + "import torch.nn\n", 2, "torch"),
    ("python_rules", "python/mmengine/a.py", PY + "from pickle import loads\n", 2, "pickle"),
    ("python_rules", "python/mmengine/a.py", PY + "import jinja2\n", 2, "jinja2"),
    ("python_rules", "python/mmengine/a.py", PY + 'a = eval("1")\n', 2, "eval"),
    ("python_rules", "python/mmengine/a.py", PY + 'exec("1")\n', 2, "exec"),
    ("python_rules", "python/mmengine/a.py", PY + "class A(ValueError): ...\n", 2, "errors.py"),
    ("headers_alone", "csrc/base/a.h", HEADER + "std::string a;\n", 1, "std"),
    ("headers_alone", "csrc/base/a.h", including("base/gone.h"), 1, "gone.h"),
    (
        "headers_alone",
        "include/mmengine/a.h",
        HEADER + "#include <span>\nusing A = std::span<int>;\n",
        1,
        "span",
    ),
    ("headers_alone", "csrc/kernels/cuda/a.cuh", CPP + "std::string a;\n", 1, "std"),
    ("changelog", "CHANGELOG.md", "# Changes\n\n## 1.0\n", 1, "Unreleased"),
    ("test_names", "tests/model/test_gone.py", PY, 1, "mirrors no file"),
    ("test_names", "tests/python/test_gone.py", PY, 1, "mirrors no file"),
    ("test_names", "tests/rules/test_gone.py", PY, 1, "mirrors no file"),
    ("test_names", "tests/native/gone.cpp", CPP, 1, "name of a layer"),
]


@pytest.fixture(scope="module")
def checker():
    """tools/check_rules.py, which is a program and no installed module."""
    spec = importlib.util.spec_from_file_location("check_rules", TOP / "tools" / "check_rules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def check(checker, capsys):
    """Run it: (exit code, what it prints)."""

    def run(root: Path, *rules: str) -> tuple[int, str]:
        code = checker.main(["--root", str(root), *rules])
        return code, capsys.readouterr().out

    return run


def write_tree(root: Path, tree: dict[str, str]) -> None:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def compile_object(root: Path, name: str, code: str) -> None:
    """Write csrc/base/<name>.cpp and its object where the build of the package puts it."""
    source = f"csrc/base/{name}.cpp"
    write_tree(root, {source: CPP + code})
    target = root / "build/py/CMakeFiles/mm_base.dir" / f"{source}.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["g++", "-c", "-O1", str(root / source), "-o", str(target)], check=True)


def test_a_build_has_one_of_two_sources(check, tmp_path) -> None:
    """Without CUDA cuda_backend.cpp has no object, with it no_cuda.cpp; one of them must."""
    pair = ("csrc/backend/cuda_backend.cpp", "csrc/backend/no_cuda.cpp")
    write_tree(tmp_path, GOOD | dict.fromkeys(pair, CPP))
    assert check(tmp_path, "forbidden_symbols")[0] == 1
    for name in pair:
        built = tmp_path / "build/py/CMakeFiles/mm_backend.dir" / f"{name}.o"
        built.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["g++", "-c", "-o", str(built), "-x", "c++", str(tmp_path / name)], check=True
        )
        assert check(tmp_path, "forbidden_symbols") == (0, "1 rules hold\n")
        built.unlink()


def test_this_tree_keeps_the_rules(check) -> None:
    code, output = check(TOP)
    assert code == 0, output


def test_good_tree_passes(check, tmp_path: Path) -> None:
    write_tree(tmp_path, GOOD)
    assert check(tmp_path) == (0, "14 rules hold\n")


@pytest.mark.parametrize(("rule", "name", "text", "line", "part"), BAD)
def test_rule_notices(
    check, tmp_path: Path, rule: str, name: str, text: str, line: int, part: str
) -> None:
    write_tree(tmp_path, {**GOOD, name: text})
    code, output = check(tmp_path, rule)
    assert code == 1
    [breach] = output.splitlines()
    assert breach.startswith(f"{name}:{line}: {rule}: ")
    assert part in breach


def test_every_rule_has_a_tree_that_breaks_it(checker) -> None:
    broken = {rule for rule, *_ in BAD} | {"forbidden_symbols"}
    assert broken == {rule.__name__ for rule in checker.RULES}


@pytest.mark.parametrize(
    ("code", "symbol"),
    [
        ('#include <cstdio>\nvoid f(int a) { std::printf("%d", a); }\n', "printf"),
        ('#include <cstdio>\nvoid f() { std::puts("a"); }\n', "puts"),
        ("#include <cstdlib>\nvoid f() { std::abort(); }\n", "abort"),
        ("#include <cstdlib>\nvoid f() { std::exit(1); }\n", "exit"),
        ('#include <iostream>\nvoid f() { std::cout << "a"; }\n', "_ZSt4cout"),
        ('#include <iostream>\nvoid f() { std::cerr << "a"; }\n', "_ZSt4cerr"),
    ],
)
def test_forbidden_symbol_is_noticed(check, tmp_path: Path, code: str, symbol: str) -> None:
    compile_object(tmp_path, "a", code)
    breach = f"csrc/base/a.cpp:1: forbidden_symbols: its object refers to {symbol}\n"
    assert check(tmp_path, "forbidden_symbols") == (1, breach)


def test_snprintf_and_exceptions_are_allowed(check, tmp_path: Path) -> None:
    code = (
        "#include <cstdio>\n#include <stdexcept>\n"
        'void f(char* a, int n) { std::snprintf(a, 8, "%d", n); throw std::runtime_error(a); }\n'
    )
    compile_object(tmp_path, "a", code)
    assert check(tmp_path, "forbidden_symbols") == (0, "1 rules hold\n")


def test_missing_object_is_noticed(check, tmp_path: Path) -> None:
    write_tree(tmp_path, {"csrc/base/a.cpp": CPP})
    code, output = check(tmp_path, "forbidden_symbols")
    assert code == 1
    assert "csrc/base/a.cpp:1: forbidden_symbols: has no object" in output


def test_words_in_comments_and_strings_are_no_breach(check, tmp_path: Path) -> None:
    code = (
        CPP + "#include <new>\n// a new list; getenv\n/* delete it,\n new */\n"
        'const char* a = "new malloc(1)";\nstruct A {\n  A(const A&) = delete;\n};\n'
    )
    write_tree(tmp_path, {"csrc/model/a.cpp": code})
    assert check(tmp_path, "no_raw_memory", "no_environment") == (0, "2 rules hold\n")


def test_line_numbers_survive_comments(check, tmp_path: Path) -> None:
    code = CPP + '/* one\ntwo */ const char* a = R"x(\n)x";\nint* b = new int;\n'
    write_tree(tmp_path, {"csrc/model/a.cpp": code})
    assert check(tmp_path, "no_raw_memory")[1].startswith("csrc/model/a.cpp:5: ")


def test_unknown_rule_is_refused(check, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        check(tmp_path, "no_such_rule")
    assert caught.value.code == 2
    assert "unknown rule 'no_such_rule'" in capsys.readouterr().err
