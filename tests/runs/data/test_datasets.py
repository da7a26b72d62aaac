"""Runs on each format of data set."""

import pytest

from ddpm_lightning import runs
from tests.helpers.configs import train_config


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
@pytest.mark.parametrize("kind", ["image_folder", "cifar10", "fashion_mnist"])
def test_they_train(kind, tmp_path, request):
    root = {"image_folder": "pictures"}.get(kind, kind)
    root = request.getfixturevalue(root)
    root = root if kind == "image_folder" else root[0]
    options = [
        f"data={kind}",
        f"data.root={root}",
        "data.batch_size=2",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    if kind == "image_folder":
        options += [
            "data.dataset.max_damaged=0.2",
            "data.image_size=[16,16]",
            "data.num_classes=2",
            "data.val_fraction=0.2",
        ]
    runs.train(train_config(tmp_path / "run", *options))
    assert (tmp_path / "run" / "samples" / "grid_0000002.png").exists()
