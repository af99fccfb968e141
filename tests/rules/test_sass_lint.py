"""tools/sass_lint.py on recorded listings: what it reads, and that it notices each breach."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sass_lint
from sass_lint import Budget, Kernel

SCALE = "_ZN8mmengine4cuda12scale_kernelILi2EEEvPffi"
MMA = "_ZN8mmengine4cuda10mma_kernelEPfPKjS3_"

# cuobjdump 13.5 of an object by nvcc 13.0, shortened.
USAGE = f"""
Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function {SCALE}:
  REG:8 STACK:0 SHARED:1424 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function {MMA}:
  REG:18 STACK:80 SHARED:0 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = f"""
\tcode for sm_90a
\t\tFunction : {SCALE}
\t.headerflags\t@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000fe20000000800 */
        /*0040*/                   HFMA2.MMA R0, -RZ, RZ, 0, 0 ;   /* 0x00000000ff007435 */
                                                                   /* 0x000fe200000001ff */
        /*0050*/              @!P0 LDG.E R9, desc[UR6][R2.64] ;    /* 0x0000000602098981 */
        /*0060*/              @UP0 UMOV UR4, URZ ;                 /* 0x0000003f00048882 */
        /*0070*/                   NOP ;                           /* 0x0000000000007918 */
\t\tFunction : {MMA}
        /*0000*/                   HMMA.16816.F32 R8, R8, R4, RZ ; /* 0x000000040808723c */
        /*0010*/                   STL.64 [R1+0x40], R2 ;          /* 0x0000400201007387 */
        /*0020*/                   STL [R1+0x48], R4 ;             /* 0x0000400201007387 */
        /*0030*/                   LDL R4, [R1+0x48] ;             /* 0x0000400201007387 */
"""
SOURCE = """// Scales.
// budget: scale_kernel 8 registers 1024 shared; needs none
__global__ void scale_kernel();
  // budget: mma_kernel<8, true> 128 registers 98304 shared; needs HMMA, LDSM
"""


def kernel(name: str = "f<8>", **facts: int) -> Kernel:
    opcodes = {code: facts.pop(code) for code in list(facts) if code.isupper()}
    return Kernel("_Z", "f.cu", name, opcodes=Counter({"LDC": 1} | opcodes), **facts)


def budget(name: str, needs: str = "", registers: int = 8, shared: int = 0) -> Budget:
    return Budget(f"f.cu:{len(name)}", name, registers, shared, tuple(needs.split()))


def test_kernels_are_read() -> None:
    scale, mma = sass_lint.read_kernels("a.cu", USAGE, SASS)
    assert (scale.symbol, scale.registers, scale.stack, scale.shared) == (SCALE, 8, 0, 400)
    assert scale.opcodes == {"LDC": 1, "HFMA2": 1, "LDG": 1, "UMOV": 1}
    assert scale.matrix() == {}, "HFMA2.MMA is no instruction of tensor cores"
    assert (mma.registers, mma.stack, mma.shared) == (18, 80, 0)
    assert mma.opcodes == {"HMMA": 1, "STL": 2, "LDL": 1}
    assert mma.matrix() == {"HMMA": 1}


@pytest.mark.parametrize(
    ("usage", "sass", "message"),
    [
        (USAGE, SASS.replace(MMA, "_Z1gv"), "only in one of"),
        (USAGE.replace(MMA, "_Z1gv"), SASS, "only in one of"),
        (USAGE, "\n".join(x for x in SASS.splitlines() if "/*00" not in x), "no instructions"),
    ],
)
def test_listings_that_disagree_are_refused(usage: str, sass: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sass_lint.read_kernels("a.cu", usage, sass)


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void mmengine::cuda::scale_kernel<2>(float*, float, int)", "scale_kernel<2>"),
        ("void mmengine::(anonymous namespace)::f<a::B, true>(void (*)(int))", "f<B, true>"),
        ("void a::f<a::S<(a::E)1, 2, -8> >(a::T<(a::E)1> const*)", "f<S<1, 2, -8>>"),
        ("mma_kernel(float*)", "mma_kernel"),
        ("mma_kernel", "mma_kernel"),
    ],
)
def test_short_names(demangled: str, short: str) -> None:
    assert sass_lint.short_name(demangled) == short


def test_budgets_are_read() -> None:
    budgets, errors = sass_lint.read_budgets({"a.cu": SOURCE, "b.cuh": "// our budget: none\n"})
    assert errors == []
    assert budgets == [
        Budget("a.cu:2", "scale_kernel", 8, 1024, ()),
        Budget("a.cu:4", "mma_kernel<8, true>", 128, 98304, ("HMMA", "LDSM")),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("// budget: f 8 registers; needs none", "a.cu:2: expected"),
        ("// budget: f 8 registers 0 shared", "a.cu:2: expected"),
        ("// budget: f 8 registers 0 shared; needs hmma", "a.cu:2: expected"),
        ("//budget: f 8 registers 0 shared; needs none", "a.cu:2: expected"),
        ("// budget: f 256 registers 0 shared; needs none", "a.cu:2: 256 registers"),
        ("// budget: f 8 registers 232449 shared; needs none", "a.cu:2: 232449 shared"),
        ("// budget: g 8 registers 0 shared; needs none", "a.cu:2: g has a budget already"),
    ],
)
def test_odd_budgets_are_errors(line: str, message: str) -> None:
    text = f"// budget: g 8 registers 0 shared; needs none\n{line}\n"
    budgets, errors = sass_lint.read_budgets({"a.cu": text})
    assert [budget.name for budget in budgets] == ["g"]
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_kept_budgets() -> None:
    names = ["f<S<1, 4>>", "f<S<2, 8>>", "f<16>", "g"]
    kernels = [kernel("f<S<2, 4>>", registers=8, shared=64, HMMA=2), *map(kernel, names)]
    budgets = [budget("f<S<2, 4>>", "HMMA LDC", shared=64), budget("f<S<*, 4>>")]
    budgets += [budget("f<S<2, 8>>"), budget("f"), budget("g")]
    assert sass_lint.check(kernels, budgets) == []
    assert [sass_lint.budget_of(kernel, budgets) for kernel in kernels] == budgets


@pytest.mark.parametrize(
    ("made", "allowed", "message"),
    [
        (kernel(registers=9), budget("f"), "f.cu: f<8>: 9 registers, f.cu:1 allows 8"),
        (kernel(shared=4), budget("f"), "f.cu: f<8>: 4 bytes of static shared memory"),
        (kernel(stack=16), budget("f"), "f.cu: f<8>: 16 bytes of stack"),
        (kernel(local=16), budget("f"), "f.cu: f<8>: 16 bytes of stack"),
        (kernel(LDL=3), budget("f"), "f.cu: f<8>: local memory is used by 3 LDL"),
        (kernel(STL=1, LDL=1), budget("f"), "f.cu: f<8>: local memory is used by 1 LDL and 1 STL"),
        (kernel(), budget("f", "HMMA"), "f.cu: f<8>: no HMMA, f.cu:1 needs it"),
        (kernel(HMMA=1), budget("f"), "f.cu: f<8>: 1 HMMA, which f.cu:1 does not name"),
        (kernel(QGMMA=1), budget("f", "LDC"), "f.cu: f<8>: 1 QGMMA, which"),
    ],
)
def test_broken_budgets(made: Kernel, allowed: Budget, message: str) -> None:
    errors = sass_lint.check([made], [allowed])
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_kernels_and_budgets_belong_together() -> None:
    errors = sass_lint.check([kernel("f<8>")], [budget("f<4>")])
    assert errors == [
        "f.cu: f<8>: has no budget; write '// budget: f<8> ...' beside it",
        "f.cu:4: f<4> is no kernel that was compiled",
    ]


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """Arguments for a source, an object and a cuobjdump that prints the recorded listings."""
    sources = tmp_path / "cuda"
    sources.mkdir()
    good = "// budget: scale_kernel 8 registers 400 shared; needs none\n"
    (sources / "a.cu").write_text(good, encoding="utf-8")
    mma = f" Function {MMA}:\n"
    (tmp_path / "usage").write_text(USAGE.partition(mma)[0], encoding="utf-8")
    (tmp_path / "sass").write_text(SASS.partition(f"\t\tFunction : {MMA}")[0], encoding="utf-8")
    program = tmp_path / "cuobjdump"
    program.write_text(
        f'#!/bin/sh\n[ -f "$2" ] || exit 3\ncat "{tmp_path}/${{1##*-}}"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    (tmp_path / "a.cu.o").write_bytes(b"")
    return ["--sources", str(sources), "--cuobjdump", str(program), str(tmp_path / "a.cu.o")]


def test_the_program(tree: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sass_lint.main(tree) == 0
    head, line, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["kernel", "source", "registers", "static"]
    assert line.split() == ["scale_kernel<2>", "a.cu", "8/8", "400", "400", "4", "-"]
    assert last == "1 kernels keep their budgets"


def test_the_program_fails(tree: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(tree[1]) / "a.cu"
    source.write_text(source.read_text("utf-8").replace(" 8 reg", " 7 reg"), encoding="utf-8")
    assert sass_lint.main(tree) == 1
    assert "a.cu: scale_kernel<2>: 8 registers, a.cu:1 allows 7" in capsys.readouterr().out


def test_the_program_names_a_tool_that_fails(tree: list[str]) -> None:
    with pytest.raises(SystemExit, match="exit code 3"):
        sass_lint.main([*tree[:-1], tree[-1] + "x"])
