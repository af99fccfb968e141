"""tools/gpu.py without a GPU: what it refuses, its time limits, what it says of missing things."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def runner(tmp_path: Path) -> gpu.Runner:
    return gpu.Runner(tmp_path / "logs", 20)


def test_a_machine_without_gpu_gets_one_sentence(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    assert gpu.main([]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"tools/dev gpu: {gpu.NO_GPU}\n")


def test_the_gpu_is_found(bin_folder: Path, tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    assert gpu.find_gpu(devices) is None
    program(bin_folder, "nvidia-smi", "echo 'No devices were found'; exit 6")
    assert gpu.find_gpu(devices) is None
    (devices / "nvidia0").touch()
    assert gpu.find_gpu(devices) == str(devices / "nvidia0")
    line = "NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.159.04"
    program(bin_folder, "nvidia-smi", f"echo '{line}'")
    assert gpu.find_gpu(devices) == line
    assert gpu.wrong_capability(line) is None
    assert gpu.wrong_capability("/dev/nvidia0") is None, "nvidia-smi did not tell"


def test_another_gpu_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: "NVIDIA A100, 8.0, 40960 MiB, 580.1")
    assert gpu.main([]) == 1
    assert "NVIDIA A100: compute capability 8.0, expected 9.0" in capsys.readouterr().err


def test_parts_go_on_after_one_that_fails(
    runner: gpu.Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        runner.run([sys.executable, "-c", "print('a reason'); raise SystemExit(3)"], 10)
        return "never"

    def lacks() -> str:
        raise gpu.NotRunError("a tool is missing")

    assert not runner.part("first", fails)
    assert not runner.part("second", lacks)
    assert runner.part("third", lambda: runner.run([sys.executable, "-c", "print(7)"], 10).strip())
    states = [(result.part, result.state) for result in runner.results]
    assert states == [("first", "FAILED"), ("second", "NOT RUN"), ("third", "passed")]
    assert "exit code 3" in runner.results[0].what
    assert runner.results[1].what == "a tool is missing"
    assert runner.results[2].what == "7"
    assert "  | a reason" in capsys.readouterr().out
    table = runner.table().splitlines()
    assert [line.split()[0] for line in table] == ["first", "second", "third", "together"]


def test_a_part_is_stopped_with_its_children(runner: gpu.Runner, tmp_path: Path) -> None:
    note = tmp_path / "note"
    child = f"import time; time.sleep(3); open({str(note)!r}, 'w').close()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(gpu.FailedError, match="stopped after 1 s"):
        runner.run([sys.executable, "-c", parent], 1)
    time.sleep(3)
    assert not note.exists()


def test_no_part_begins_when_the_time_is_over(tmp_path: Path) -> None:
    runner = gpu.Runner(tmp_path, 0)
    with pytest.raises(gpu.NotRunError, match="no time was left"):
        runner.run([sys.executable, "-c", ""], 10)


def test_missing_packages_are_named(tmp_path: Path) -> None:
    assert gpu.missing_packages(Path(sys.executable)) == {}
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    missing = gpu.missing_packages(bare / "bin" / "python")
    assert {"pybind11", "nlohmann-json", "pip"} <= set(missing["building"])
    assert "mistral-common" in missing["the package"]
    assert "pytest" in missing["the tests"]


def test_an_environment_sees_the_packages_it_was_made_over(
    runner: gpu.Runner, tmp_path: Path
) -> None:
    text = gpu.make_environment(runner, tmp_path / "venv")
    assert text.startswith("all packages are there")
    code = "import numpy, pytest; print(numpy.__version__)"
    assert runner.run([tmp_path / "venv" / "bin" / "python", "-c", code], 20)


def test_what_the_build_needs_is_named(
    bin_folder: Path, runner: gpu.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpu.shutil, "which", lambda name, path=None: None if name == "nvcc" else "/bin/sh"
    )
    with pytest.raises(gpu.NotRunError, match="nvcc is missing"):
        gpu.build(runner, tmp_path)


def test_compute_sanitizer_is_named_where_it_is_missing(
    bin_folder: Path, runner: gpu.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: None)
    with pytest.raises(gpu.NotRunError, match="nvidia-cuda-sanitizer-api"):
        gpu.sanitize(runner, Path(sys.executable), "memcheck")


def test_a_sanitizer_that_finds_something_fails(bin_folder: Path, runner: gpu.Runner) -> None:
    text = 'echo "$2"; echo "========= ERROR SUMMARY: 0 errors"'
    program(bin_folder, "compute-sanitizer", text)
    assert gpu.sanitize(runner, Path("python"), "racecheck") == "ERROR SUMMARY: 0 errors"
    program(bin_folder, "compute-sanitizer", "exit 99")
    with pytest.raises(gpu.FailedError, match="exit code 99"):
        gpu.sanitize(runner, Path("python"), "racecheck")


def test_a_build_without_cuda_runs_no_tests(
    runner: gpu.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "python", "echo ref cpu:scalar")
    with pytest.raises(gpu.NotRunError, match="no backend 'cuda', only ref, cpu:scalar"):
        gpu.kernel_tests(runner, tmp_path / "python")
    program(tmp_path, "python", 'echo ref cuda; echo "== 5 passed in 1 s =="')
    assert gpu.kernel_tests(runner, tmp_path / "python") == "5 passed in 1 s"
