import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning.seeds import derive

parts = st.lists(st.integers(0, 2**32) | st.text(max_size=5), max_size=4)


@given(st.integers(0, 2**32), parts, parts)
def test_each_key_has_a_seed_of_its_own(seed, one, other):
    assert derive(seed, *one) == derive(seed, *one)
    if one != other:
        assert derive(seed, *one) != derive(seed, *other)
    assert derive(seed, *one) != derive(seed + 1, *one)
    assert 0 <= derive(seed, *one) < 2**63


def test_the_rule_never_changes():
    # a changed rule would change every run that was ever seeded
    assert derive(0, "order", 3) == GOLDEN


GOLDEN = 6549658755111301564


def test_no_two_ranks_or_batches_share_their_noise():
    """Also not under accumulation, where the optimiser's step stands still: the counter is that of micro-batches."""
    keys = {derive(0, "step", number, rank) for number in range(500) for rank in range(8)}
    assert len(keys) == 500 * 8
    firsts = {torch.randn((), generator=torch.Generator().manual_seed(key)).item() for key in sorted(keys)[:1000]}
    assert len(firsts) == 1000
