"""What the measures during training refuse."""

import pytest

from ddpm_lightning.callbacks import GenerationMetrics
from ddpm_lightning.samplers import DDIM


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 9}, {"every_n_steps": 0}, {"batch_size": 0}, {"seed": -1}, {"guidance_scale": -1.0}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GenerationMetrics(None, DDIM(2), (1, 8, 8), **options)
