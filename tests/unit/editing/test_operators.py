import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ddpm_lightning.editing import Blur, Downsample, Mask
from ddpm_lightning.errors import UserError

SIZE = (6, 9)
OPERATORS = {
    "mask": lambda: Mask(torch.rand(1, *SIZE) < 0.6),
    "masks": lambda: Mask(torch.rand(5, 1, *SIZE) < 0.6),
    "downsample": lambda: Downsample(3, SIZE),
    "blur": lambda: Blur(1.3, SIZE),
    "wide blur": lambda: Blur(20.0, SIZE),
}


def pair(operator):
    x = torch.randn(5, 2, *SIZE, dtype=torch.float64)
    return x, torch.randn_like(operator.forward(x))


@pytest.mark.parametrize("name", OPERATORS)
def test_transposes(name):
    operator = OPERATORS[name]()
    x, y = pair(operator)
    y = operator.forward(y) if "mask" in name else y  # in its range
    assert torch.allclose((operator.forward(x) * y).sum(), (x * operator.transpose(y)).sum(), rtol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_solutions(name, noise):
    operator = OPERATORS[name]()
    y = operator.forward(pair(operator)[0])
    v = operator.solve(y, 1.7, noise)
    again = 1.7 * operator.forward(operator.transpose(v)) + noise**2 * v
    # without noise, some frequencies of a blur are lost
    assert torch.allclose(again, y, atol=1e-3 if "blur" in name and not noise else 1e-10)


@pytest.mark.parametrize("name", ["mask", "masks", "downsample", "blur"])
def test_the_nearest_image_that_agrees(name):
    operator = OPERATORS[name]()
    x, true = pair(operator)[0], pair(operator)[0]
    nearest = operator.agree(x, operator.forward(true))
    assert torch.allclose(operator.forward(nearest), operator.forward(true), atol=1e-3)
    if name != "blur":  # the change is orthogonal to all images that A maps to 0
        change, unseen = nearest - x, operator.agree(torch.randn_like(x), torch.zeros_like(operator.forward(x)))
        assert abs(float((change * unseen).sum())) < 1e-9


def test_a_blur_is_the_one_of_scipy_with_mirrored_edges():
    x = torch.randn(1, 1, *SIZE, dtype=torch.float64)
    expected = gaussian_filter(x[0, 0].numpy(), 1.3, mode="reflect", truncate=8)
    assert np.abs(Blur(1.3, SIZE).forward(x)[0, 0].numpy() - expected).max() < 1e-9


def test_operators_take_any_number_of_axes():
    for size in ((8,), (4, 6), (2, 4, 6)):
        x = torch.randn(3, 2, *size, dtype=torch.float64)
        assert Downsample(2, size).forward(x).shape == (3, 2, *(side // 2 for side in size))
        assert torch.allclose(Blur(0.7, size).forward(torch.ones_like(x)), torch.ones_like(x))


def test_bad_operators():
    with pytest.raises(UserError, match=r"factor must divide all sides of the images, \[6, 9\], got 2"):
        Downsample(2, SIZE)
    with pytest.raises(UserError, match="std must be a positive number, got 0"):
        Blur(0, SIZE)
