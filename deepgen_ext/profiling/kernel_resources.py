"""What the compiler gave each CUDA kernel: registers, shared memory, stack, and so its occupancy.

Read out of the compiled library by `cuobjdump --dump-resource-usage`, of any CUDA toolkit; no GPU is
needed. Spilled registers are in the stack, which is otherwise empty but for arrays that a kernel
indexes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from deepgen_ext import _extension

# Of one multiprocessor. Warps, and bytes of shared memory, by architecture; registers: 64 Ki.
WARPS = {
    "sm_75": 32,
    "sm_80": 64,
    "sm_86": 48,
    "sm_89": 48,
    "sm_90": 64,
    "sm_100": 64,
    "sm_120": 48,
}
SHARED_BYTES = {
    "sm_75": 65536, "sm_80": 167936, "sm_86": 102400, "sm_89": 102400, "sm_90": 233472,
    "sm_100": 233472, "sm_120": 102400,
}  # fmt: skip
REGISTERS, RESERVED_SHARED = 65536, 1024


@dataclass(frozen=True)
class Kernel:
    """A kernel in one architecture's code; `name` as the linker knows it."""

    arch: str
    name: str
    registers: int
    shared: int
    stack: int

    @property
    def op(self) -> str:
        """The .cu file that it is compiled from; empty for what several share."""
        if chain := re.search(r"(Planar|Radial)Step", self.name):
            return f"{chain.group(1).lower()}_chain"
        found = re.search(r"_\d{2}_([a-z0-9_]+?)_cu_[0-9a-f]{8}", self.name)
        return found.group(1) if found else ""

    def occupancy(self, threads: int = 256) -> float:
        """The share of a multiprocessor's warps that blocks of so many threads can fill.

        By registers and static shared memory; what a launch asks for besides is not in the code.
        NaN for an architecture that is not in the tables above.
        """
        if self.arch not in WARPS:
            return float("nan")
        warps = threads // 32
        of_a_warp = -(-self.registers * 32 // 256) * 256  # registers are handed out by 256
        by_registers = REGISTERS // of_a_warp // warps
        by_shared = SHARED_BYTES[self.arch] // (self.shared + RESERVED_SHARED)
        blocks = min(WARPS[self.arch] // warps, by_registers, by_shared)
        return blocks * warps / WARPS[self.arch]


def parse(text: str) -> Iterator[Kernel]:
    """The kernels in what `cuobjdump --dump-resource-usage` prints."""
    arch = name = ""
    for line in text.splitlines():
        if found := re.match(r"arch = (\S+)", line):
            arch = found.group(1)
        elif found := re.match(r"\s*Function (\S+?):?$", line):
            name = found.group(1)
        elif name and "REG:" in line:
            used = dict(re.findall(r"(\w+):(\d+)", line))
            shared, stack = int(used["SHARED"]), int(used["STACK"]) + int(used["LOCAL"])
            yield Kernel(arch, name, int(used["REG"]), shared, stack)
            name = ""


def kernels_of_this_build() -> list[Kernel] | str:
    """Those of the newest architecture that was built; or why they cannot be told."""
    archs = _extension.build_info()["cuda_archs"]
    if not archs:
        return "this build has no CUDA kernels"
    tool = shutil.which("cuobjdump")
    if tool is None:
        return "no cuobjdump (of a CUDA toolkit) on the PATH"
    library = _extension._C.__file__
    done = subprocess.run(
        [tool, "--dump-resource-usage", library], capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        return f"cuobjdump failed: {(done.stderr or done.stdout).strip().splitlines()[0]}"
    return [kernel for kernel in parse(done.stdout) if kernel.arch == f"sm_{archs[-1]}"]


def readable(names: list[str]) -> list[str]:
    """Demangled by c++filt where there is one: kernel<types>, without namespaces and arguments."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    return [short_name(line) for line in done.stdout.splitlines()]


def short_name(name: str) -> str:
    """A demangled name without namespaces and arguments."""
    name = name.removeprefix("void ")
    depth = 0
    for end, letter in enumerate(name):  # the arguments begin at a bracket outside of <>
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not name.startswith("(anonymous namespace)", end):
            name = name[:end]
            break
    return re.sub(
        r"deepgen::|cuda::|\(anonymous namespace\)::|\(anonymous\)::|<unnamed>::", "", name
    )


def table(kernels: list[Kernel], ops: list[str] | None = None) -> list[tuple[str, ...]]:
    """A row a kernel, of these ops or of all; the first is the head."""
    chosen = [kernel for kernel in kernels if ops is None or kernel.op in ops]
    rows = [("op", "kernel", "registers", "shared", "stack", "occupancy")]
    for kernel, name in zip(chosen, readable([k.name for k in chosen]), strict=True):
        occupancy = f"{kernel.occupancy():.0%}" if kernel.arch in WARPS else "-"
        sizes = (str(n) for n in (kernel.registers, kernel.shared, kernel.stack))
        rows.append((kernel.op, name, *sizes, occupancy))
    return [rows[0], *sorted(rows[1:])]
