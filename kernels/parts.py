"""The parts of a compiled kernel: its instructions, by the function they were written in.

A part is a function of the kernel's source, named in a table. Machine code has the source line of
each instruction, through all inlined functions, so it can be told which part an instruction is of,
wherever the compiler moved it. What the compiler moved out of a loop, or what it put into a place
that mostly belongs to another part, counts as part of where it is.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import triton
from triton.compiler import CompiledKernel
from triton.runtime.cache import get_cache_manager

_FOLDERS = [Path(__file__).parent / room for room in ("fused", "generator")]


@dataclass(frozen=True)
class Instruction:
    name: str  # with its suffixes: "LDG.E.U8"
    operands: str
    frames: tuple[tuple[str, int], ...]  # functions and lines it was inlined through, inner first

    def part(self, parts: Collection[str]) -> str | None:
        """Return the innermost of the parts that it was written in."""
        return next((name for name, _ in self.frames if name in parts), None)

    def site(self, part: str) -> tuple[tuple[str, int], ...]:
        """Return the calls that lead to the part."""
        # Code that the compiler made names its part twice; no part calls itself.
        outermost = max(at for at, (name, _) in enumerate(self.frames) if name == part)
        return self.frames[outermost + 1 :]


@dataclass(frozen=True)
class Block:
    """Instructions of which all run if one does."""

    labels: tuple[str, ...]
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Part:
    """What the machine code has of a part."""

    # That a warp runs each time, by their names with suffixes: fractions where copies differ, none
    # where all of them stand among those of other parts.
    instructions: dict[str, float]
    copies: int  # places that it is called in
    looped: bool  # if not, each copy runs at most once a program: a loop of it is unrolled


def read_parts(kernel: CompiledKernel, parts: Collection[str]) -> dict[str, Part]:
    """Find the parts of a kernel in its machine code.

    Both sides of a branch count, but for the slow paths of divisions, which no kernel here takes.
    A part that is called in several places must be called equally often in each.

    Raises:
        ValueError: The kernel has no such part.
    """
    blocks = [block for block in _blocks(_listing(kernel)) if not _is_slow_path(block)]
    loops = _loops(blocks)
    homes = {part: _homes(part, blocks, loops, parts) for part in parts}
    counts: dict[str, Counter[str]] = {part: Counter() for part in parts}
    sites: dict[str, set[tuple[tuple[str, int], ...]]] = {part: set() for part in parts}
    for number, block in enumerate(blocks):
        here = {part for part in parts if any(number in home for home in homes[part])}
        votes: Counter[str] = Counter()
        for instruction in block.instructions:
            if found := instruction.part(here):
                votes[found] += 1
                sites[found].add(instruction.site(found))
        if votes:
            part = votes.most_common(1)[0][0]
            if len(homes[part][0]) == len(blocks):  # not in a loop, or moved there with no place
                part = _looping(number, part, homes, loops)
            counts[part].update(instruction.name for instruction in block.instructions)
    known = {name for block in blocks for code in block.instructions for name, _ in code.frames}
    if missing := [part for part in parts if part not in known]:
        raise ValueError(f"{kernel.name} has no instructions of {', '.join(missing)}")
    found_parts = {}
    for part, count in counts.items():
        copies = max(len(sites[part]), 1)
        each = {name: number / copies for name, number in count.items()}
        looped = all(len(home) < len(blocks) for home in homes[part])
        found_parts[part] = Part(each, copies, looped)
    return found_parts


def _looping(number: int, part: str, homes: dict[str, list[range]], loops: Sequence[range]) -> str:
    """Return the part that the innermost loop around a block is the home of; else `part`."""
    around = min((loop for loop in loops if number in loop), key=len, default=None)
    return next((name for name, home in homes.items() if around in home), part)


def _homes(
    part: str, blocks: Sequence[Block], loops: Sequence[range], parts: Collection[str]
) -> list[range]:
    """Return, for each call of a part, the blocks of the innermost loop that holds most of it."""
    places: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for number, block in enumerate(blocks):
        for instruction in block.instructions:
            if instruction.part(parts) == part:
                places.setdefault(instruction.site(part), []).append(number)
    homes = [range(len(blocks))] if not places else []
    most = max(map(len, places.values()), default=0)
    for numbers in places.values():
        if len(numbers) * 10 < most:  # moved out of a loop, with the place lost
            continue
        holding = (
            loop for loop in loops if sum(number in loop for number in numbers) > len(numbers) / 2
        )
        homes.append(min(holding, key=len, default=range(len(blocks))))
    return homes


def _is_slow_path(block: Block) -> bool:
    # Some loops are left by a call of a place in the kernel itself.
    calls = (code for code in block.instructions if code.name.startswith("CALL"))
    return any(".L_x" not in call.operands for call in calls)


def _loops(blocks: Sequence[Block]) -> list[range]:
    """Return the blocks from the target of each jump backwards to the jump."""
    place = {label: number for number, block in enumerate(blocks) for label in block.labels}
    loops: dict[int, range] = {}
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if last and last.name.startswith("BRA"):
            target = re.search(r"\((\.L\w+)\)", last.operands)
            start = place.get(target[1], number + 1) if target else number + 1
            if start <= number:
                loops[start] = range(start, max(number + 1, loops.get(start, range(0)).stop))
    return list(loops.values())


def _blocks(listing: str) -> list[Block]:
    """Cut nvdisasm's text of a kernel, without what follows its own code."""
    blocks: list[Block] = []
    labels: list[str] = []
    current: list[Instruction] = []
    chain: list[tuple[str, int]] = []
    complete = True

    def close() -> None:
        if current:
            blocks.append(Block(tuple(labels), tuple(current)))
            labels.clear()
            current.clear()

    for line in listing.splitlines():
        if line.startswith("$"):  # a function that is called: the slow path of a division
            break
        if label := re.match(r"(\.L\w+):", line):
            close()
            labels.append(label[1])
        elif source := re.match(r'\s+//## File "([^"]*)", line (\d+)(.*)', line):
            if complete:
                chain = []
            line_number = int(source[2])
            if line_number:  # the compiler's own code is of no line
                chain.append((_function(Path(source[1]).name, line_number), line_number))
            complete = "inlined at" not in source[3]
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ +)?([A-Z]\S*)\s*(.*);", line):
            current.append(Instruction(code[1].rstrip(";"), code[2], tuple(chain)))
            if current[-1].name.startswith(("BRA", "EXIT", "RET", "CALL", "BRX")):
                close()
    close()
    # The code ends in a branch to itself and padding.
    return [b for b in blocks if not all(i.name == "NOP" for i in b.instructions)]


def _function(file: str, line: int) -> str:
    return next((name for name, lines in _functions(file) if line in lines), "")


@lru_cache
def _functions(file: str) -> list[tuple[str, range]]:
    """Return the functions of a file of kernels, with their lines."""
    path = next((path for folder in _FOLDERS if (path := folder / file).exists()), None)
    if path is None:  # Triton's own
        return []
    nodes = ast.parse(path.read_text()).body
    return [
        (node.name, range(node.lineno, (node.end_lineno or 0) + 1))
        for node in nodes
        if isinstance(node, ast.FunctionDef)
    ]


def _listing(kernel: CompiledKernel) -> str:
    """Return nvdisasm's text with source lines, kept beside the kernel in Triton's cache."""
    cache, name = get_cache_manager(kernel.hash), f"{kernel.name}.lines"
    listing = cache.get_file(name)
    if listing is None:
        (cubin,) = (path for file, path in kernel.metadata_group.items() if file.endswith(".cubin"))
        command = [triton.knobs.nvidia.nvdisasm.path, "-gi", "-c", cubin]
        listed = subprocess.run(command, check=True, capture_output=True)
        listing = cache.put(listed.stdout, name)
    return Path(listing).read_text()
