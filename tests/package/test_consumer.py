"""The library without Python, installed, found and linked by a foreign CMake project.

The tree is built in build/package and stays there, so that a second run builds what changed only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from make_tiny_model import make_tiny_model

import mmengine

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [3, 14, 15, 92, 65]


def run(*command: str | Path) -> str:
    """Runs a command to its end; stdout and stderr together. Fails with them if it fails."""
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": tools + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def configure(source: Path, build: Path, *definitions: str) -> None:
    """cmake -S source -B build for a Release build by ninja, with ccache where there is one."""
    launcher = shutil.which("ccache")
    extra = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []
    python = f"-DPython_EXECUTABLE={sys.executable}"
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", python,
        *extra, *definitions)  # fmt: skip


@pytest.fixture(scope="module", params=["static", "shared"])
def consumer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The consumer's program, built against an installed mmengine of that kind."""
    build = ROOT / "build" / "package" / request.param
    base = tmp_path_factory.mktemp(request.param)
    shared = "ON" if request.param == "shared" else "OFF"
    configure(ROOT, build, "-DMM_PYTHON=OFF", "-DMM_CUDA=OFF", f"-DBUILD_SHARED_LIBS={shared}")
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", base / "prefix")
    source = Path(__file__).parent / "consumer"
    configure(source, base / "build", f"-DCMAKE_PREFIX_PATH={base / 'prefix'}")
    run("cmake", "--build", base / "build")
    return base / "build" / "consumer"


def test_the_same_tokens_as_from_python(consumer: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, layout="mistral", shards=2, seed=9)
    lines = run(consumer, tmp_path, *map(str, PROMPT)).split()
    params = mmengine.SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    with mmengine.Engine(str(tmp_path), device="cpu") as engine:
        expected = engine.generate(PROMPT, params).token_ids
        assert lines[:14] == [*map(str, expected), "length", "0"]
        even = [int(line) for line in lines[14:26]]
        best = engine.logits([*PROMPT, *even])[len(PROMPT) - 1 : -1, ::2].argmax(axis=1)
    assert even == [2 * int(i) for i in best]
    assert lines[26:] == ["length", "0"]


def test_errors_cross_the_library_border(consumer: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [consumer, tmp_path / "nowhere", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    code, sentence = done.stderr.strip().split(" ", 1)
    assert code == "2", "the enumerator model_not_found"
    assert "nowhere" in sentence
    assert "\n" not in sentence


def test_only_what_is_public_is_installed(consumer: Path) -> None:
    prefix = consumer.parents[1] / "prefix"
    headers = sorted(path.name for path in (prefix / "include").rglob("*") if path.is_file())
    public = sorted(path.name for path in (ROOT / "include" / "mmengine").iterdir())
    assert headers == public
    libraries = [path.name for path in prefix.rglob("*") if ".so" in path.name or ".a" in path.name]
    assert libraries
    assert all(name.startswith("libmmengine.") for name in libraries)
