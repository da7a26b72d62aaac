"""What a resumed run refuses, and what it finds again."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from tests.helpers.configs import train_config
from tests.helpers.datasets import write_fashion_mnist

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_other_images_are_refused(tmp_path):
    images = torch.randint(256, (60, 28, 28), generator=torch.Generator().manual_seed(0)).numpy()
    write_fashion_mnist(tmp_path, images, torch.arange(60).numpy() % 10)
    options = ["data=fashion_mnist", f"data.root={tmp_path}", "data.batch_size=4", "callbacks.neighbors=null"]
    runs.train(train_config(tmp_path / "run", *options))
    labels = tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(content)
    with pytest.raises(
        UserError, match=r"data: the images or labels differ from those that the run was trained on \(fingerprint"
    ):
        runs.train(train_config(tmp_path / "unused", f"resume={tmp_path / 'run'}"))


def test_a_run_that_is_moved_beside_a_folder_of_the_same_beginning_keeps_its_data(tmp_path):
    images = torch.randint(256, (60, 28, 28), generator=torch.Generator().manual_seed(0)).numpy()
    write_fashion_mnist(tmp_path / "exp_images", images, torch.arange(60).numpy() % 10)
    root = f"data.root={tmp_path / 'exp_images'}"
    runs.train(
        train_config(tmp_path / "exp", "data=fashion_mnist", root, "data.batch_size=4", "callbacks.neighbors=null")
    )
    shutil.move(tmp_path / "exp", tmp_path / "elsewhere")
    runs.train(train_config(tmp_path / "unused", f"resume={tmp_path / 'elsewhere'}"))
    config = OmegaConf.load(tmp_path / "elsewhere" / "config.yaml")
    assert config["data"]["root"] == str(tmp_path / "exp_images")
    assert config["callbacks"]["checkpoint"]["dirpath"] == str(tmp_path / "elsewhere" / "checkpoints")
