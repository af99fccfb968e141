"""What the compiled CUDA kernels take of the device, held against what their sources allow.

Usage: sass_lint.py --sources csrc/kernels/cuda --cuobjdump PROGRAM OBJECT...

Beside each kernel its source has one line (here of two examples):

    // budget: rms_norm_kernel 40 registers 0 shared; needs none
    // budget: gemm_kernel<Shape<*, 8>> 128 registers 98304 shared; needs HMMA, LDSM

registers are those of a thread; shared is the bytes of shared memory that a block is launched with
at most, static ones included; needs names the instructions of tensor cores, and others, that the
machine code must hold, or none, which allows no instruction of tensor cores. Names are without
namespaces, `*` stands for any text; a name without <arguments> speaks for every instance of a
template that has no line of its own. The longest name that fits counts. Errors: a kernel
without a budget, a budget without a kernel, more registers or static shared memory than allowed,
local memory or a stack in whatever form, an instruction that is missing, one of tensor cores that
is not named. Prints one table and `where: what` for each error; exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

MAX_REGISTERS = 255
MAX_SHARED = 227 * 1024  # bytes a block of sm_90 may have
RESERVED_SHARED = 1024  # bytes of every block that the system keeps, which cuobjdump counts in
MATRIX = re.compile(r"[BDHIQ]G?MMA")
LOCAL = ("LDL", "STL")

BUDGET = re.compile(
    r"\s*// budget: (?P<name>\w+(?:<.*>)?) (?P<registers>\d+) registers (?P<shared>\d+) shared;"
    r" needs (?P<needs>none|[A-Z][A-Z0-9]*(?:, [A-Z][A-Z0-9]*)*)"
)
USAGE = re.compile(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+) ")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P[\dT]+ )?([A-Z][A-Z0-9_]*)\b")


@dataclass(frozen=True)
class Budget:
    """One line of a source: `where` is file:line."""

    where: str
    name: str
    registers: int
    shared: int
    needs: tuple[str, ...]


@dataclass
class Kernel:
    """One kernel of one object: what cuobjdump tells of it; `opcodes` counts without NOP."""

    symbol: str
    source: str
    name: str = ""
    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)

    def matrix(self) -> dict[str, int]:
        """Instructions of tensor cores: opcode -> how many."""
        return {code: n for code, n in sorted(self.opcodes.items()) if MATRIX.fullmatch(code)}


def read_budgets(texts: dict[str, str]) -> tuple[list[Budget], list[str]]:
    """Budgets of sources, name -> text, and what is wrong with their lines."""
    budgets: dict[str, Budget] = {}
    errors: list[str] = []
    for source, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if not re.match(r"\s*//\s*budget\b", line):
                continue
            where = f"{source}:{number}"
            match = BUDGET.fullmatch(line)
            if not match:
                form = "// budget: NAME N registers N shared; needs none | OPCODE, ..."
                errors.append(f"{where}: expected '{form}', got '{line.strip()}'")
                continue
            needs = () if match["needs"] == "none" else tuple(match["needs"].split(", "))
            budget = Budget(
                where, match["name"], int(match["registers"]), int(match["shared"]), needs
            )
            if budget.name in budgets:
                first = budgets[budget.name].where
                errors.append(f"{where}: {budget.name} has a budget already, in {first}")
            elif budget.registers > MAX_REGISTERS:
                errors.append(f"{where}: {budget.registers} registers, a thread has 255 at most")
            elif budget.shared > MAX_SHARED:
                errors.append(f"{where}: {budget.shared} shared, a block has {MAX_SHARED} at most")
            else:
                budgets[budget.name] = budget
    return list(budgets.values()), errors


def read_kernels(source: str, usage: str, sass: str) -> list[Kernel]:
    """Kernels of one object, from what `cuobjdump -res-usage` and `cuobjdump -sass` print of it.

    Raises ValueError where the two do not tell of the same kernels.
    """
    kernels: dict[str, Kernel] = {}
    symbol = ""
    for line in usage.splitlines():
        if match := re.fullmatch(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := USAGE.match(line):
            registers, stack, shared, local = map(int, match.groups())
            shared -= RESERVED_SHARED if shared >= RESERVED_SHARED else 0
            kernels[symbol] = Kernel(symbol, source, symbol, registers, stack, shared, local)
    read = set()
    symbol = ""
    for line in sass.splitlines():
        if match := re.fullmatch(r"\s*Function : (\S+)", line):
            symbol = match[1]
            read.add(symbol)
        elif (match := INSTRUCTION.match(line)) and symbol in kernels and match[1] != "NOP":
            kernels[symbol].opcodes[match[1]] += 1
    if odd := read ^ set(kernels):
        raise ValueError(f"{source}: {min(odd)} is only in one of -res-usage and -sass")
    if empty := [kernel.symbol for kernel in kernels.values() if not kernel.opcodes]:
        raise ValueError(f"{source}: {empty[0]} has no instructions; is nvdisasm beside cuobjdump?")
    return list(kernels.values())


def short_name(demangled: str) -> str:
    """`void a::(anonymous namespace)::f<a::S<(a::E)2, 8> >(float*)` -> `f<S<2, 8>>`."""
    text = demangled.replace("(anonymous namespace)", "anonymous")
    text = re.sub(r"\(\w+(?:::\w+)*\)(?=-?\d)", "", text)  # the type of an enumerator
    text = re.sub(r"\b\w+::", "", text).replace("> >", ">>")
    depth = start = 0
    for i, letter in enumerate(text):
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth -= 1
        elif depth == 0 and letter == "(":
            return text[start:i]
        elif depth == 0 and letter == " ":
            start = i + 1
    return text[start:]


def budget_of(kernel: Kernel, budgets: Iterable[Budget]) -> Budget | None:
    """The budget with the longest name that fits the kernel's, or None."""
    names = (kernel.name, kernel.name.partition("<")[0])
    fitting = [b for b in budgets if any(fnmatchcase(name, b.name) for name in names)]
    return max(fitting, key=lambda budget: len(budget.name), default=None)


def check(kernels: list[Kernel], budgets: list[Budget]) -> list[str]:
    """Every way in which the kernels break their budgets, one sentence each."""
    errors: list[str] = []
    used: set[str] = set()
    for kernel in kernels:
        who = f"{kernel.source}: {kernel.name}"
        if kernel.stack or kernel.local:
            errors.append(f"{who}: {kernel.stack + kernel.local} bytes of stack, expected none")
        if local := [f"{kernel.opcodes[code]} {code}" for code in LOCAL if kernel.opcodes[code]]:
            errors.append(f"{who}: local memory is used by {' and '.join(local)}")
        budget = budget_of(kernel, budgets)
        if budget is None:
            errors.append(f"{who}: has no budget; write '// budget: {kernel.name} ...' beside it")
            continue
        used.add(budget.name)
        for what, got, most in (
            ("registers", kernel.registers, budget.registers),
            ("bytes of static shared memory", kernel.shared, budget.shared),
        ):
            if got > most:
                errors.append(f"{who}: {got} {what}, {budget.where} allows {most}")
        for code in budget.needs:
            if not kernel.opcodes[code]:
                errors.append(f"{who}: no {code}, {budget.where} needs it")
        for code, count in kernel.matrix().items():
            if code not in budget.needs:
                errors.append(f"{who}: {count} {code}, which {budget.where} does not name")
    for budget in budgets:
        if budget.name not in used:
            errors.append(f"{budget.where}: {budget.name} is no kernel that was compiled")
    return errors


def table(kernels: list[Kernel], budgets: list[Budget]) -> str:
    """One line per kernel; of registers and shared bytes: used / allowed."""
    rows = [("kernel", "source", "registers", "static", "shared", "instructions", "tensor cores")]
    for kernel in kernels:
        budget = budget_of(kernel, budgets)
        registers, shared = (budget.registers, str(budget.shared)) if budget else ("-", "-")
        matrix = " ".join(f"{count} {code}" for code, count in kernel.matrix().items())
        counts = f"{kernel.registers}/{registers}", str(kernel.shared), shared
        total = str(kernel.opcodes.total())
        rows.append((kernel.name, kernel.source, *counts, total, matrix or "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= i <= 5 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def output_of(*command: str | Path) -> str:
    tools = os.pathsep.join((str(Path(command[0]).parent), os.environ.get("PATH", "")))
    words = [str(word) for word in command]
    environment = {**os.environ, "PATH": tools}  # cuobjdump looks for nvdisasm there
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        what = (done.stderr or done.stdout).strip()
        raise SystemExit(f"sass_lint: {words[0]}: exit code {done.returncode}: {what}")
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Lint the named objects; 0 when every budget is kept, 1 when not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder of the .cu files")
    parser.add_argument("--cuobjdump", type=Path, required=True, help="has nvdisasm beside it")
    parser.add_argument("objects", nargs="+", type=Path, help="NAME.cu.o, as nvcc made them")
    options = parser.parse_args(arguments)
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(options.sources.iterdir())
        if path.suffix in (".cu", ".cuh", ".h")
    }
    budgets, errors = read_budgets(texts)
    kernels: list[Kernel] = []
    for path in options.objects:
        usage = output_of(options.cuobjdump, "-res-usage", path)
        sass = output_of(options.cuobjdump, "-sass", path)
        kernels += read_kernels(path.name.removesuffix(".o"), usage, sass)
    if kernels:
        names = output_of("c++filt", *(kernel.symbol for kernel in kernels)).splitlines()
        for kernel, name in zip(kernels, names, strict=True):
            kernel.name = short_name(name)
    kernels.sort(key=lambda kernel: (kernel.source, kernel.name))
    print(table(kernels, budgets))
    errors += check(kernels, budgets)
    for error in errors:
        print(error)
    if not errors:
        print(f"{len(kernels)} kernels keep their budgets")
    return min(len(errors), 1)


if __name__ == "__main__":
    sys.exit(main())
