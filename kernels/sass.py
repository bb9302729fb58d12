"""What the machine code (SASS) of a compiled kernel shows: registers, spills, access widths."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import triton
from triton.compiler import CompiledKernel
from triton.runtime.cache import get_cache_manager


@dataclass(frozen=True)
class MachineCode:
    """What matters of a kernel's instructions."""

    registers: int  # per thread
    spilled: int  # bytes of stack per thread
    loads: tuple[int, ...]  # bytes per thread of the accesses to global memory, widest first
    stores: tuple[int, ...]
    tensor_cores: int  # instructions
    digest: str  # hash of the instructions


def read_machine_code(kernel: CompiledKernel) -> MachineCode:
    """Disassemble a kernel that Triton has compiled."""
    text = _listing(kernel)
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    # "/*0050*/  @!P0 LDG.E.128.CONSTANT R4, ... ;": the operation follows the predicate, if any
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*);", text, re.M)
    operations = [re.sub(r"^@\S+ ", "", line).split()[0] for line in code]
    return MachineCode(
        registers=int(used["REG"]),
        spilled=int(used["STACK"]) + int(used["LOCAL"]),
        loads=_widths(operations, ("LDG", "LDGSTS")),
        stores=_widths(operations, ("STG",)),
        tensor_cores=sum(name.split(".")[0].endswith("MMA") for name in operations),
        digest=sha256("".join(code).encode()).hexdigest(),
    )


def _listing(kernel: CompiledKernel) -> str:
    """Return cuobjdump's text, which is kept beside the kernel in Triton's cache."""
    cache, name = get_cache_manager(kernel.hash), f"{kernel.name}.sass"
    listing = cache.get_file(name)
    if listing is None:
        (cubin,) = (path for file, path in kernel.metadata_group.items() if file.endswith(".cubin"))
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", "--dump-sass", cubin]
        listed = subprocess.run(command, check=True, capture_output=True)
        listing = cache.put(listed.stdout, name)  # whole, whoever else writes it too
    return Path(listing).read_text()


def _widths(operations: Sequence[str], kinds: Sequence[str]) -> tuple[int, ...]:
    """Return the bytes per thread: LDG.E.128 moves 16, LDG.E.U8 1, and LDG.E 4."""
    widths = set()
    for name, *suffixes in (operation.split(".") for operation in operations):
        if name in kinds:
            bits = [re.fullmatch(r"[US]?(8|16|32|64|128|256)", suffix) for suffix in suffixes]
            widths.add(max((int(match[1]) for match in bits if match), default=32) // 8)
    return tuple(sorted(widths, reverse=True))
