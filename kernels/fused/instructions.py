"""Instructions of a GPU for words of four bytes, and for rounding: device functions.

Triton's interpreter knows none of them; without ASM, other operations take their place.
"""

import triton
import triton.language as tl

INSTRUCTIONS = not triton.knobs.runtime.interpret


@triton.jit
def pick(low, high, numbers):
    """Return four of the eight bytes of two words, by the lowest four nibbles of `numbers`."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, numbers],
        dtype=tl.uint32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def join(low, high, shift):
    """Return the word that begins `shift` bits, 0 to 24, after the beginning of the lower word."""
    return tl.inline_asm_elementwise(
        "shf.r.wrap.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, shift],
        dtype=tl.uint32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def dot(weights, word, start, HIGH: tl.constexpr):
    """Return start + two bytes of a word, the lower or the higher ones, times two weights."""
    return tl.inline_asm_elementwise(
        "dp2a.hi.u32.u32 $0, $1, $2, $3;" if HIGH else "dp2a.lo.u32.u32 $0, $1, $2, $3;",
        "=r,r,r,r", [weights, word, start], dtype=tl.uint32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def multiply_add(x, y, z, ASM: tl.constexpr):
    """Return x * y + z, float32, rounded once."""
    if ASM:
        total = tl.fma(x, tl.broadcast_to(y, x.shape), z)
    else:  # the interpreter rounds the product too
        total = (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(tl.float32)
    return total


@triton.jit
def level(value, share, start, MODE: tl.constexpr, ASM: tl.constexpr):
    """Return int32 of which the lowest byte is value * share + start, rounded or truncated."""
    if not ASM:  # the interpreter would round the product, and its constants are float64
        exact = value.to(tl.float64) * share + start
        bits = (exact if MODE == "direct" else exact.to(tl.float32)).to(tl.int32)
    else:
        bits = tl.inline_asm_elementwise(
            "fma.rz.f32 $0, $1, $2, $3;" if MODE == "direct" else "fma.rn.f32 $0, $1, $2, $3;",
            "=r,r,r,r", [value, share, start], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return bits


@triton.jit
def _word(byte0, byte1, byte2, byte3, ASM: tl.constexpr):
    """Return words of the lowest bytes of int32."""
    b0, b1 = byte0.to(tl.uint32, bitcast=True), byte1.to(tl.uint32, bitcast=True)
    b2, b3 = byte2.to(tl.uint32, bitcast=True), byte3.to(tl.uint32, bitcast=True)
    if ASM:
        word = pick(pick(b0, b1, 0x0040), pick(b2, b3, 0x0040), 0x5410)
    else:
        word = (b0 & 255) | ((b1 & 255) << 8) | ((b2 & 255) << 16) | (b3 << 24)
    return word


@triton.jit
def store_levels(out, levels, live, CHANNELS: tl.constexpr, ASM: tl.constexpr):
    """Store the lowest bytes of four columns of each channel as CHANNELS words."""
    for word in tl.static_range(CHANNELS):
        joined = _word(
            levels[(4 * word) % CHANNELS * 4 + (4 * word) // CHANNELS],
            levels[(4 * word + 1) % CHANNELS * 4 + (4 * word + 1) // CHANNELS],
            levels[(4 * word + 2) % CHANNELS * 4 + (4 * word + 2) // CHANNELS],
            levels[(4 * word + 3) % CHANNELS * 4 + (4 * word + 3) // CHANNELS],
            ASM,
        )
        tl.store(out + word, joined, mask=live)
