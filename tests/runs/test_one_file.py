"""examples/ddpm_in_one_file.py trains and samples as train.py does, without its machinery."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.callbacks import Randomness
from tests.helpers.configs import ROOT, config_of

FILE = ROOT / "examples" / "ddpm_in_one_file.py"
STEPS, IMAGES = 20, 4


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("ddpm_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
def test_losses_weights_and_grid_are_those_of_train_py_bit_by_bit(example, tmp_path, monkeypatch):
    expected = []

    def keep(self, trainer, module, outputs, batch, batch_idx):
        expected.append(outputs["loss"].item())

    monkeypatch.setattr(Randomness, "on_train_batch_end", keep)
    folder = tmp_path / "run"
    unneeded = [
        f"callbacks.{name}=null" for name in ("trajectory", "neighbors", "log_snr", "schedule_curves", "forward_strip")
    ]
    runs.train(
        config_of(
            "experiment=lecture_digits",
            "logger=none",
            f"run_dir={folder}",
            "trainer.accelerator=cpu",
            f"trainer.max_steps={STEPS}",
            f"trainer.val_check_interval={STEPS}",
            f"callbacks.sample_grid.num_samples={IMAGES}",
            *unneeded,
        )
    )
    denoiser = example.build()
    losses = list(example.train(denoiser, STEPS))
    assert len(losses) == STEPS
    assert losses == expected
    assert losses[-1] < losses[0]
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    ours = denoiser.state_dict()
    assert saved.keys() == {f"denoiser.{name}" for name in ours}
    assert all(torch.equal(saved[f"denoiser.{name}"], value) for name, value in ours.items())
    example.save(example.sample(denoiser, IMAGES), tmp_path / "grid.png")
    sheets = [Image.open(path) for path in (tmp_path / "grid.png", folder / "samples" / f"grid_{STEPS:07d}.png")]
    assert np.array_equal(*map(np.asarray, sheets))


def test_the_example_is_one_short_file_without_lightning_and_hydra():
    assert len(FILE.read_text().splitlines()) <= 150
    code = (
        f"import runpy, sys; example = runpy.run_path({str(FILE)!r}); next(example['train'](example['build'](), 1)); "
        "print(*sorted({'lightning', 'pytorch_lightning', 'hydra'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "\n"


def test_its_command_line_trains_tells_and_saves(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", "--steps", "2", "--images", "4", "--out", str(tmp_path / "x.png")])
    monkeypatch.setattr(example, "sample", lambda denoiser, count: torch.zeros(count, *example.SHAPE))
    example.main()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step     2  loss ")
    assert last == str(tmp_path / "x.png")
    with Image.open(last) as sheet:
        assert sheet.size == (2 * 130 + 2, 2 * 130 + 2)  # 8×8 pixels, 16 times as large
