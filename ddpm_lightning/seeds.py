"""Seeds derived from their purpose, so that no random state has to be saved."""

import numpy as np

__all__ = ["derive"]


def derive(seed: int, *key: int | str) -> int:
    """Derive a seed: the first 63 bits of `numpy.random.SeedSequence` of the run's seed and the key.

    Args:
        seed: the run's seed, a non-negative integer.
        key: the purpose and its counters, as in `derive(seed, "order", epoch)`.
    """
    words = [seed]
    for part in key:
        words += list(part.encode()) if isinstance(part, str) else [part]
        words.append(len(words))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
