"""The batch sizes that run on a GPU, each with its own CUDA graphs."""

BATCH_SIZES = (1, 4, 8, 16, 25, 40)  # frames
ENCODER_BATCH_SIZES = (8, 32)  # mel windows; the first frame needs 7


def batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Return the sizes to run: `BATCH_SIZES` below `batch_size`, and `batch_size`.

    Batches in between are padded to the next size, because every size needs captures and memory of
    its own.
    """
    return (*(size for size in BATCH_SIZES if size < batch_size), batch_size)


def round_up_to(sizes: tuple[int, ...], n: int) -> int:
    """Return the smallest of the ascending `sizes` that is at least `n`.

    Raises:
        ValueError: `n` is larger than all sizes.
    """
    for size in sizes:
        if size >= n:
            return size
    raise ValueError(f"batch size is {n}; expected at most {sizes[-1]}")
