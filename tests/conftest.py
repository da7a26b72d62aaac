"""What the tests share: tiny configs, a run that was trained once, and the entry points in processes of their own."""

import os
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings

import ddpm_lightning.cli.entry  # noqa: F401  registers the resolvers of conf/

ROOT = Path(__file__).parent.parent

# A network of some thousand weights, four steps: a whole run in a second.
TINY = (
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=2",
    "sampler.num_steps=4",
    "callbacks.sample_grid.num_samples=4",
    "callbacks.sample_grid.every_n_steps=2",
    "callbacks.raw_grid.num_samples=4",
    "callbacks.raw_grid.every_n_steps=2",
    "callbacks.neighbours.num_samples=2",
    "callbacks.neighbours.num_neighbours=2",
    "callbacks.log_snr.num_images=4",
    "callbacks.trajectory.num_samples=2",
    "callbacks.trajectory.num_columns=3",
    "callbacks.trajectory.every_n_steps=2",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.checkpoint.save_top_k=-1",
    "lr_scheduler.total_iters=2",
)

IMAGES_ALONE = ("callbacks.sample_grid", "callbacks.raw_grid", "callbacks.neighbours", "callbacks.trajectory")

TINY_POINTS = (
    "data=two_moons",
    "data.dataset.num_points=200",
    "model=mlp",
    "model.hidden_size=16",
    "callbacks=points",
    "callbacks.scatter.num_samples=20",
    "callbacks.scatter.num_columns=3",
    "callbacks.scatter.every_n_steps=2",
    *(o for o in TINY if not o.startswith(("model.", *IMAGES_ALONE))),
)

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")
torch.set_num_threads(1)


def config_of(*overrides, name="train"):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def train_config(folder, *overrides, tiny=TINY):
    return config_of(*tiny, "logger=none", f"run_dir={folder}", *overrides)


def script(name, *args, cwd, env=None, timeout=300):
    """Run an entry point as a user does, without any W&B key."""
    return subprocess.run(
        [sys.executable, str(ROOT / name), *args],
        cwd=cwd,
        env=_clean(cwd) | (env or {}),
        timeout=timeout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@contextmanager
def script_started(name, *args, cwd):
    """The same in a process group of its own, of which nothing is left afterwards."""
    with (Path(cwd) / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / name), *args],
            cwd=cwd,
            env=_clean(cwd),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _clean(cwd):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    return {**ours, "OMP_NUM_THREADS": "1", "NETRC": str(Path(cwd) / "no-netrc")}


def write_fashion_mnist(root, images, labels):
    """The set's files, in MNIST's own format."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a finished tiny run."""
    from ddpm_lightning import runs

    folder = tmp_path_factory.mktemp("runs") / "outputs" / "tiny"
    runs.train(train_config(folder))
    return folder
