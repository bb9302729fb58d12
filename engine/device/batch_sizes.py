"""The batch sizes that run on a GPU. Each has CUDA graphs of its own."""

BATCH_SIZES = (1, 4, 8, 16, 25, 40)  # of frames
ENCODER_BATCH_SIZES = (8, 32)  # of mel windows; the first frame needs 7


def batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Return the sizes to run: `BATCH_SIZES` below `batch_size`, and `batch_size`.

    Batches in between are padded to the next size, because a graph for every size would take as
    many captures, and as much memory, as there are sizes.
    """
    return (*(size for size in BATCH_SIZES if size < batch_size), batch_size)


def round_up_to(sizes: tuple[int, ...], n: int) -> int:
    """Return the smallest of `sizes`, which ascend, that is at least `n`.

    Raises:
        ValueError: all are smaller.
    """
    for size in sizes:
        if size >= n:
            return size
    raise ValueError(f"batch of {n} is larger than all of the sizes {sizes}")
