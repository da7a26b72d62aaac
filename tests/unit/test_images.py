import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.images import SeededNoise, from_uint8, grid, save_png, to_uint8


def test_bytes_survive_the_way_to_floats_and_back():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = from_uint8(every)
    assert (x.min(), x.max(), x.dtype) == (-1, 1, torch.float32)
    torch.testing.assert_close(to_uint8(x), every)


def test_floats_are_clipped_and_rounded_to_the_nearest():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, from_uint8(torch.tensor([7])).item() + 0.49 / 127.5])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 7]


@pytest.mark.parametrize("batches", [[6], [1] * 6, [4, 2]])
def test_an_images_noise_is_its_own_whatever_the_batch(batches):
    like = torch.zeros(6, 2, 3, 3)
    whole = SeededNoise(3, range(6))
    expected = torch.stack([whole(like) for _ in range(3)])
    parts = [SeededNoise(3, ids.tolist()) for ids in torch.arange(6).split(batches)]
    got = torch.stack([torch.cat([n(x) for n, x in zip(parts, like.split(batches), strict=True)]) for _ in range(3)])
    assert torch.equal(got, expected)


def test_noise_is_standard_normal_and_differs_between_images_seeds_and_draws():
    noise = SeededNoise(0, range(50))
    x = torch.stack([noise(torch.zeros(50, 1, 16, 16)) for _ in range(4)])
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.std().item() == pytest.approx(1, abs=0.02)
    assert len({tuple(v[:3].tolist()) for v in x.flatten(0, 1).flatten(1)}) == 200
    assert not torch.equal(SeededNoise(1, range(50))(x[0]), x[0])


def test_noise_times_are_uniform():
    t = SeededNoise(0, range(4000)).times(4)
    assert torch.bincount(t).tolist()[1:] == [pytest.approx(1000, abs=100)] * 4


def test_a_grid_puts_image_i_in_row_and_column(tmp_path):
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8) * 40
    sheet = grid(images, columns=3, cell=32)
    assert sheet.shape == (3, 2 * 34 + 2, 3 * 34 + 2)
    assert [sheet[0, 2 + 34 * r + 16, 2 + 34 * c + 16].item() for r in range(2) for c in range(3)] == [
        0, 40, 80, 120, 160, 200,
    ]  # fmt: skip
    save_png(images[3], tmp_path / "new" / "one.png")
    assert (np.asarray(Image.open(tmp_path / "new" / "one.png")) == 120).all()


def test_images_are_rounded_as_they_are_saved():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]
