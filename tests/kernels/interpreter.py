"""Triton's interpreter, faster: most of its time is the bookkeeping of types, not the arithmetic."""

from functools import cache
from typing import Any

import numpy as np


def cache_patches() -> None:
    """Replace what the interpreter does again and again for the same types and functions.

    Results stay the same, as do the checks of integer overflow.
    """
    from triton.runtime import interpreter

    prepared = set()

    def call(self, *arguments, **options):
        # It patches Triton's language at every call of a device function.
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = call
    # A GPU's maximum of a number and NaN is the number; before Triton 3.8, it was NaN here.
    interpreter.InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    _cache_types()
    _check_overflow_in_numpy()


def _cache_types() -> None:
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    dtype_of, dtypes = interpreter._get_np_dtype, {}

    def dtype_of_name(type: Any) -> np.dtype:
        if (found := dtypes.get(type.name)) is None:
            found = dtypes[type.name] = dtype_of(type)
        return found

    unwrap = core._unwrap_if_constexpr

    def unwrap_usual(value: Any) -> Any:
        if isinstance(value, core.constexpr):
            return value.value
        return value if isinstance(value, (int, core.dtype, core.tensor)) else unwrap(value)

    @cache
    def shape_and_size(*sizes: int) -> tuple[Any, Any]:
        shape = core.tuple([core.constexpr(size) for size in sizes])
        return shape, core.constexpr(int(np.prod(sizes)))

    def new_tensor(self, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_and_size(*type.shape.values if type.is_block() else ())

    new_block, blocks = core.block_type.__init__, {}

    def new_block_type(self, element_ty: Any, shape: Any) -> None:
        sizes = shape.values if isinstance(shape, core.tuple) else unwrap_usual(shape)
        key = element_ty.name, *map(unwrap_usual, sizes)
        if key not in blocks:
            new_block(self, element_ty, shape)
            blocks[key] = vars(self).copy()
        vars(self).update(blocks[key], element_ty=element_ty)

    check_types = TritonSemantic.binary_op_type_checking_impl

    def check_unless_equal(self, left: Any, right: Any, *rules: Any, **more: Any) -> Any:
        # Only quotients, which have a fourth rule, may have another type than both operands.
        tensors = isinstance(left, core.tensor) and isinstance(right, core.tensor)
        if tensors and len(rules) < 4 and not more:
            blocks = left.type.is_block() and right.type.is_block()
            same = left.dtype is right.dtype and not left.dtype.is_ptr()
            if blocks and same and left.type.shape.values == right.type.shape.values:
                return left, right
        return check_types(self, left, right, *rules, **more)

    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_unless_equal(self, left: Any, right: Any) -> tuple[Any, Any]:
        if left.type.is_block() and right.type.is_block():
            if left.type.shape.values == right.type.shape.values:
                return left, right
        elif not left.type.is_block() and not right.type.is_block():
            return left, right
        return broadcast(self, left, right)

    interpreter._get_np_dtype = dtype_of_name
    core._unwrap_if_constexpr = unwrap_usual
    core.tensor.__init__ = new_tensor
    core.block_type.__init__ = new_block_type
    TritonSemantic.binary_op_type_checking_impl = check_unless_equal
    TritonSemantic.broadcast_impl_value = broadcast_unless_equal


def _check_overflow_in_numpy() -> None:
    """Check that sums and products fit 32 bits or less, with three operations instead of a dozen."""
    from triton.language.semantic import TritonSemantic

    operations = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def check(self, left: Any, right: Any, operation: Any) -> None:
        type = left.type.scalar
        if type.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
            return
        a, b = (value.handle.data.astype(np.int64) for value in (left, right))
        exact = operations[operation.__name__](a, b)
        if exact.min() < type.get_int_min_value() or exact.max() > type.get_int_max_value():
            raise AssertionError(f"int{type.int_bitwidth} overflow in {operation.__name__}")

    TritonSemantic.binary_op_sanitize_overflow_impl = check
