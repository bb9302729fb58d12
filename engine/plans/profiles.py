"""The optimization profiles of a plan: the batches for which TensorRT chooses its kernels."""

# Best and largest batch of the second profile, which is for what one live session asks for: one
# frame and up to four, or 8 mel windows.
SMALL = {"generator": (1, 4), "audio_encoder": (8, 8)}


def profiles(network: str, batch: list[int]) -> list[list[int]]:
    """Return smallest, best and largest batch of each profile.

    Args:
        network: the signature's kind.
        batch: those of the plan. If the best one is much larger than the smallest one, there is a
            second profile for small batches.
    """
    least, best, _ = batch
    small_best, small_most = SMALL[network]
    if least <= small_best and small_most < best:
        return [batch, [least, small_best, small_most]]
    return [batch]


def profile_for(network: str, batch: list[int], n: int) -> int:
    """Return the number of the profile for `n` rows."""
    found = profiles(network, batch)
    return len(found) - 1 if n <= found[-1][2] else 0
