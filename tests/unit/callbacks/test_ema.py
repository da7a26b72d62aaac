"""The averaged weights' settings."""

import pytest

from ddpm_lightning.callbacks import EMA

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be a number in \[0, 1\), got {decay}"):
        EMA(decay)
