"""What a GPU does in a clock cycle, for `kernels.model`: one table, with where it is from.

Multiprocessors, clocks and bandwidths of the data sheets; rates of the CUDA C++ Programming Guide's
table of arithmetic throughput, as cycles for which an instruction of a warp keeps its pipe in one
of the four parts of a multiprocessor: 32 lanes over (results a cycle and multiprocessor / 4).
`copy` is the bandwidth of a large copy, reads and writes together: measured for H100 and H200, for
the others nine tenths of the data sheet's. None of the rates has been measured with these kernels.
"""

import re
from dataclasses import dataclass

# The pipe of an instruction, by the beginning of its name in the machine code. Names that begin
# with U run once a warp, in a unit of their own. All others that are not listed (branches,
# barriers, special registers) only need to be issued.
PIPES = {
    "fma": ("FFMA", "FMUL", "FADD"),
    "half": ("HADD2", "HMUL2", "HFMA2", "HMNMX2"),
    "imad": ("IMAD", "IDP"),
    "alu": (
        "IADD", "VIADD", "IABS", "LEA", "LOP", "PLOP", "SHF", "SHL", "SHR", "PRMT", "SEL", "FSEL",
        "ISETP", "FSETP", "IMNMX", "VIMNMX", "VIADDMNMX", "FMNMX", "FSET", "MOV", "SGXT", "BMSK",
        "FCHK", "P2R", "R2P", "I2FP", "F2FP", "FLO", "CS2R",
    ),
    "xu": ("MUFU", "I2F", "F2I", "F2F", "FRND", "I2I", "POPC", "BREV"),
    "l1": ("LD", "ST", "SHFL", "ATOM", "RED"),
    "tensor": ("HMMA", "HGMMA", "IMMA", "IGMMA"),
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU. Cycles are those of one warp's instruction, see above."""

    name: str
    arch: int  # compute capability, 90 for 9.0
    processors: int
    clock: float  # cycles a second
    copy: float  # bytes a second
    fma: float  # float32 add, multiply, fused multiply-add
    threads: int  # that a multiprocessor holds
    shared: int  # bytes of shared memory of a multiprocessor
    imad: float = 2.0  # runs in half of the fma pipe
    alu: float = 2.0
    xu: float = 8.0  # conversions and special functions
    half: float = 1.0  # two float16 at once; runs in the fma pipe
    # Multiplications and additions of a cycle: with sums of float32, and of float16, by a warp's
    # own instruction (mma.sync), and by one of four warps (wgmma).
    mma: float = 256.0
    half_mma: float = 256.0
    group_mma: float = 512.0
    l1: float = 0.25  # a multiprocessor's L1 moves 128 bytes a cycle for its four parts together
    registers: int = 65536


GPUS = {
    "h200": Gpu("H200", 90, 132, 1.98e9, 4.3e12, 1.0, 2048, 233472),
    "h100": Gpu("H100", 90, 132, 1.98e9, 3.0e12, 1.0, 2048, 233472),
    "a100": Gpu("A100", 80, 108, 1.41e9, 1.4e12, 2.0, 2048, 167936),
    "4090": Gpu(
        "RTX 4090", 89, 128, 2.52e9, 0.92e12, 1.0, 1536, 102400, half=2.0, mma=64.0, half_mma=128.0
    ),
}


def pipe_of(instruction: str) -> str | None:
    """Return the pipe of an instruction such as "LDG.E.128"; None if it only needs to be issued."""
    name = instruction.split(".")[0]
    if name in ("LDC", "LDGDEPBAR", "LDCU"):
        return None
    return next((pipe for pipe, names in PIPES.items() if name.startswith(names)), None)


def cycles_of(instruction: str, gpu: Gpu) -> float:
    """Return how long an instruction of a warp keeps its pipe, other than L1; 0 if it has none.

    A product of 16 x 8 x 16 is HMMA.16816, one of four warps together HGMMA.64x128x16; ".F32" says
    that its sums are float32.
    """
    pipe = pipe_of(instruction)
    if pipe != "tensor":
        return getattr(gpu, pipe) if pipe in ("fma", "half", "imad", "alu", "xu") else 0.0
    if whole := re.search(r"\.(\d+)x(\d+)x(\d+)", instruction):
        rows, columns, depth = map(int, whole.groups())
        return rows // 4 * columns * depth / gpu.group_mma
    small = re.search(r"\.(16)(8)(\d+)", instruction)
    rows, columns, depth = map(int, small.groups()) if small else (16, 8, 16)
    rate = gpu.mma if ".F32" in instruction else gpu.half_mma
    return rows * columns * depth / rate


def wavefronts(instruction: str, lines: float = 1.0) -> float:
    """Return how many times 128 bytes an access by a warp moves through L1 or shared memory.

    Args:
        instruction: "LDSM.16.M88.4" moves four 8 x 8 matrices; a copy to shared memory is
            written to it, and read from L1 before if it does not bypass that.
        lines: of an access of 4 bytes or less a lane, see `kernels.work`.
    """
    if matrices := re.search(r"\.M88(?:\.([24]))?", instruction):
        return float(matrices[1] or 1)
    wide = 4.0 if ".128" in instruction else 2.0 if ".64" in instruction else lines
    through_l1 = instruction.startswith("LDGSTS") and ".BYPASS" not in instruction
    return 2 * wide if through_l1 else wide
