import math

import pytest
import torch

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.points import checkerboard, swiss_roll, two_moons
from ddpm_lightning.errors import UserError

N = 4000


def plane(found):
    assert found.images.shape == (N, 2, 1, 1)
    assert found.images.dtype == torch.float32
    assert found.images.abs().max() <= 1
    return found.images.flatten(1).double(), found.labels


def test_moons_without_noise_lie_on_their_half_circles():
    x, moon = plane(two_moons(N, 0.0))
    p = 1.5 * x + torch.tensor([0.5, 0.25])
    for label, (centre, side) in enumerate([((0.0, 0.0), 1), ((1.0, 0.5), -1)]):
        arm = p[moon == label] - torch.tensor(centre)
        torch.testing.assert_close(arm.norm(dim=1), torch.ones(len(arm)).double(), rtol=0, atol=1e-6)
        assert (side * arm[:, 1] >= -1e-6).all()  # the upper half, and the lower
        angle = torch.atan2(side * arm[:, 1], arm[:, 0])
        assert angle.mean() == pytest.approx(math.pi / 2, abs=0.1)
        assert angle.std() == pytest.approx(math.pi / 12**0.5, abs=0.05)  # uniform
    assert moon.float().mean() == pytest.approx(0.5, abs=0.03)


def test_moons_are_scikit_learns():
    from sklearn.datasets import make_moons

    theirs, labels = make_moons(N, noise=0.05, random_state=0)
    x, moon = plane(two_moons(N, 0.05))
    p = (1.5 + 4 * 0.05) * x + torch.tensor([0.5, 0.25])
    for label in (0, 1):
        ours, sklearns = p[moon == label], torch.from_numpy(theirs[labels == label])
        torch.testing.assert_close(ours.mean(0), sklearns.mean(0), rtol=0, atol=0.06)
        torch.testing.assert_close(ours.T.cov(), sklearns.T.cov(), rtol=0, atol=0.04)


def test_noise_is_as_wide_as_it_says():
    x, moon = plane(two_moons(N, 0.1))
    p = (1.5 + 4 * 0.1) * x + torch.tensor([0.5, 0.25])
    radius = p[(moon == 0) & (p[:, 1] > 0.3)].norm(dim=1)  # far from the ends
    assert radius.std() == pytest.approx(0.1, rel=0.1)


def test_the_roll_without_noise_is_archimedes_spiral_and_its_labels_are_quarters():
    x, quarter = plane(swiss_roll(N, 0.0))
    radius = x.norm(dim=1)
    turned = (torch.atan2(x[:, 1], x[:, 0]) - 4.5 * math.pi * radius) / (2 * math.pi)
    torch.testing.assert_close(turned, turned.round(), rtol=0, atol=1e-5)
    assert radius.min() == pytest.approx(1 / 3, abs=0.01)
    assert radius.max() == pytest.approx(1, abs=0.01)
    assert torch.equal(quarter, (4 * (3 * radius - 1) / 2 - 1e-9).floor().long().clamp(0, 3))
    assert quarter.bincount().tolist() == pytest.approx([N / 4] * 4, rel=0.1)


def test_the_board_is_uniform_on_its_black_cells():
    x, cell = plane(checkerboard(N))
    column, row = ((x + 1) * 2).floor().long().T
    assert ((column + row) % 2 == 0).all()
    assert torch.equal(cell, 2 * row + column // 2)
    assert cell.bincount(minlength=8).tolist() == pytest.approx([N / 8] * 8, rel=0.2)
    within = ((x + 1) * 2) % 1
    torch.testing.assert_close(within.mean(0), torch.full((2,), 0.5).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(within.T.cov(), torch.eye(2).double() / 12, rtol=0, atol=0.005)


@pytest.mark.parametrize("family", [two_moons, swiss_roll, checkerboard])
def test_the_seed_is_all_that_points_depend_on(family):
    first, other = family(100, seed=3), family(100, seed=4)
    torch.manual_seed(5)
    assert torch.equal(first.images, family(100, seed=3).images)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize(
    "given", [{"num_points": 0}, {"num_points": 1.5}, {"noise": -1}, {"noise": math.nan}, {"seed": -1}, {"seed": 0.5}]
)
def test_impossible_settings_are_named(given):
    ((key, value),) = given.items()
    with pytest.raises(UserError, match=rf"data.dataset.{key} must be .*, got {value}"):
        two_moons(**{"num_points": 10, **given})


def test_the_data_module_leaves_points_as_they_are():
    data = ImageDataModule(lambda: two_moons(100), channels=2, image_size=[1, 1], batch_size=10, num_classes=2)
    data.setup()
    x, moon, _ = two_moons(100)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            moved = data.on_after_batch_transfer(batch, 0)
            assert torch.equal(moved.x0, x[batch.ids])
            assert torch.equal(moved.y, moon[batch.ids])
