"""One rule for every random draw: its seed is computed from what it is for, and never saved."""

import numpy as np

__all__ = ["derive"]


def derive(seed: int, *key: int | str) -> int:
    """A seed for one purpose: the first 63 bits of `numpy.random.SeedSequence` over the run's seed and the key.

    Args:
        seed: the run's seed, a non-negative integer.
        key: what the draw is for, and its counters: `derive(seed, "order", epoch)`.
    """
    words = [seed]
    for part in key:
        words += list(part.encode()) if isinstance(part, str) else [part]
        words.append(len(words))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
