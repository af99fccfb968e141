"""The roofline picture: refused before anything is measured, and true to the numbers."""

import struct
import sys

import pytest

from fake_engine import FakeEngine
from mmengine import bench_plot, cli
from mmengine.bench_result import Bench, Row
from mmengine.errors import OutputError, UsageError
from mmengine.roofline import Machine, Work

MACHINE = Machine(read_bytes_per_s=1e10, flops_per_s=1e11, int8_ops_per_s=4e11)


def bench_of(*points):
    """A bench of rows with these (phase, batch, tokens per second, work)."""
    rows = [Row(p, 100, 8, batch, rate, 1.0, None, 50.0) for p, batch, rate, _ in points]
    works = [work for *_, work in points]
    count = len(rows)
    return Bench(rows, [None] * count, ["memory"] * count, works, [], [], None, MACHINE, None)


RESULT = bench_of(
    ("prefill", 1, 1000.0, Work(bytes=1e8, flops=3e9)),
    ("decode", 1, 50.0, Work(bytes=1e8, flops=2e7, int8_ops=1e7)),
    ("decode", 4, 100.0, Work(bytes=1e8, flops=1.2e8)),
)


def test_a_picture_is_written(tmp_path):
    path = bench_plot.check_plot(str(tmp_path / "roof.PNG"))
    bench_plot.plot(RESULT, "a title", path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1080, 720)


def test_points_and_roofs_are_the_numbers(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    bench_plot.plot(RESULT, "a title", tmp_path / "roof.png")
    (axes,) = drawn[0].axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_title()) == ("log", "log", "a title")
    points = [
        tuple(map(float, line.get_xydata()[0]))
        for line in axes.lines
        if len(line.get_xydata()) == 1
    ]
    # 0.1 s of prefill; steps of 20 and 40 ms.
    assert [x for x, _ in points] == pytest.approx([30.0, 0.3, 1.2])
    assert [y for _, y in points] == pytest.approx([3e10, 1.5e9, 3e9])
    roofs = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 2]
    memory, floats, int8 = roofs
    assert [y / x for x, y in memory] == pytest.approx([1e10, 1e10])
    assert tuple(memory[1]) == pytest.approx((40, 4e11))
    assert tuple(floats[0]) == pytest.approx((10, 1e11))
    assert tuple(int8[0]) == pytest.approx((40, 4e11))
    assert floats[1][1] == 1e11
    assert int8[1][1] == 4e11
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        "memory, 10.0 GB/s",
        "floats, 100 GFLOPS",
        "int8, 400 GOPS",
        "prefill 100, batch 1: 50 %",
        "decode 100, batch 1: 50 %",
        "decode 100, batch 4: 50 %",
    ]


@pytest.mark.parametrize("name", ["roof.svg", "roof", ".png", ""])
def test_only_png(name):
    with pytest.raises(UsageError, match=r"--plot: expected a name that ends in .png"):
        bench_plot.check_plot(name)


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"no/roof.png: cannot be written: no such file"):
        bench_plot.check_plot(str(tmp_path / "no" / "roof.png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=r"folder.png: cannot be written"):
        bench_plot.check_plot(str(tmp_path / "folder.png"))


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"matplotlib, .* pip install 'mmengine\[plot\]'"):
        bench_plot.check_plot("roof.png")


@pytest.mark.parametrize(("name", "code"), [("roof.jpg", 64), ("no/roof.png", 74)])
def test_refused_before_the_model_is_opened(capsys, monkeypatch, tmp_path, name, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    FakeEngine.opened = []
    assert cli.main(["bench", "--plot", name], engine_factory=FakeEngine) == code
    assert FakeEngine.opened == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert name in captured.err


def test_command_draws(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "roof.png"
    argv = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--repeat", "1", "--batch", "1"]
    assert cli.main([*argv, "--plot", str(path)], engine_factory=FakeEngine) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "prefill" in capsys.readouterr().out
