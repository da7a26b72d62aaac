"""What pictures refuse."""

import pytest

from ddpm_lightning.callbacks import LogSNRCurve, Neighbors, SampleGrid, Trajectory
from ddpm_lightning.samplers import DDIM

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (LogSNRCurve, {"num_images": 0}),
        (LogSNRCurve, {"batch_size": 0}),
        (LogSNRCurve, {"seed": -1}),
        (LogSNRCurve, {"every_n_steps": 0}),
        (lambda folder, **kw: Neighbors(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"num_neighbors": 0}),
        (lambda folder, **kw: Trajectory(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"num_frames": 1}),
        (lambda folder, **kw: Trajectory(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"viewer_frames": 1}),
        (lambda folder, **kw: SampleGrid(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"weights": "best"}),
    ],
)
def test_bad_settings_are_refused(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make("folder", **options)
