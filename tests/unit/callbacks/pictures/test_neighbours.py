"""The nearest training images."""

import pytest
import torch

from ddpm_lightning.metrics import distances

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.mark.parametrize("at_a_time", [2, 7, 1000])
def test_a_planted_image_is_the_nearest(at_a_time, monkeypatch):
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = images[[33, 4, 20]].clone()
    samples[0, 0, 0, 0] ^= 3  # nearly a copy
    samples[2] = samples[2].flip(-1)  # a mirrored one
    monkeypatch.setattr(distances, "_BLOCK", at_a_time)
    found = images[distances.nearest(samples, images, count=5, mirrored=True)[1]]
    squares = torch.minimum(
        *((x[:, None].double() - images.double()).square().sum((2, 3, 4)) for x in (samples, samples.flip(-1)))
    )
    assert torch.equal(found, images[squares.argsort(1)[:, :5]])
    assert torch.equal(found[:, 0], images[[33, 4, 20]])
    assert distances.nearest(samples, images[:3], count=5)[1].shape == (3, 3)
