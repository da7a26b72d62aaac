"""Files with one flipped bit."""

import random

from ddpm_lightning.errors import UserError
from tests.helpers.resuming import assert_equal


def flipped(content, chance):
    """The bytes with one bit turned over."""
    held = bytearray(content)
    held[chance.randrange(len(held))] ^= 1 << chance.randrange(8)
    return bytes(held)


def silent(path, read, count, seed=0):
    """Of so many flips those that give other contents without a word, and how many are found; `read` raises, or gives the contents."""
    before, content, chance = read(), path.read_bytes(), random.Random(seed)
    lost, found = [], 0
    for _ in range(count):
        path.write_bytes(flipped(content, chance))
        try:
            after = read()
        except (UserError, ValueError, OSError):
            found += 1
            continue
        try:
            assert_equal(before, after)
        except AssertionError as error:
            lost.append(str(error))
    path.write_bytes(content)
    return lost, found
