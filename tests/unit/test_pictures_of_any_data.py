import torch

from ddpm_lightning.images import as_pictures


def test_a_signal_is_a_curve():
    x = torch.tensor([[[1.0, 1.0, 0.0, -1.0]]])
    picture = as_pictures(x)
    assert picture.shape == (1, 3, 65, 4)
    drawn = picture[0, 0] == 255
    assert [column.nonzero().flatten().tolist() for column in drawn.T] == [
        [0],
        [*range(33)],  # from 1, row 0, down to 0, row 32
        [*range(32, 65)],
        [64],
    ]


def test_channels_of_a_signal_have_colors():
    x = torch.stack([torch.full((5,), 1.0), torch.full((5,), -1.0)])[None]
    picture = as_pictures(x)
    assert picture[0, :, 0, 2].tolist() == [255, 255, 255]
    assert picture[0, :, 64, 2].tolist() == [80, 170, 255]


def test_frames_and_channels_stand_side_by_side():
    video = torch.rand(2, 3, 4, 5, 6) * 2 - 1
    picture = as_pictures(video)
    assert picture.shape == (2, 3, 5, 24)
    for frame in range(4):
        assert torch.equal(picture[..., 6 * frame : 6 * frame + 6], as_pictures(video[:, :, frame]))
    latent = torch.rand(2, 4, 5, 6) * 2 - 1
    picture = as_pictures(latent)
    assert picture.shape == (2, 1, 5, 24)
    assert torch.equal(picture[:, :, :, 12:18], as_pictures(latent[:, 2:3]))
