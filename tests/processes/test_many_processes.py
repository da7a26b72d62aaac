"""What many processes compute is what one computes: gradients of the joined batch, noise of each rank's own."""

import csv
import json

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.losses import Loss
from ddpm_lightning.models import UNet
from ddpm_lightning.schedules import linear
from tests.helpers.configs import WHOLE
from tests.helpers.scripts import script, torchrun

RANKS, PER_RANK = 2, 3


def denoiser():
    torch.manual_seed(0)
    model = UNet(
        1, 1, base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4, dropout=0, zero_init=False
    )
    return Denoiser(model, linear()).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(RANKS * PER_RANK, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = torch.randint(1, 1001, (RANKS * PER_RANK, 1, 1, 1), generator=generator)
    return x0, t, noise


class MeanLoss(torch.nn.Module):
    """The scalar that `DDPM.training_step` returns, for given t and noise."""

    def __init__(self):
        super().__init__()
        self.denoiser, self.loss = denoiser(), Loss()

    def forward(self, x0, t, noise):
        x_t = self.denoiser.schedule.q_sample(x0, t, noise)
        return self.loss(self.denoiser, x0, x_t, t, noise).mean()


def _rank(rank, address, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    replica = DistributedDataParallel(MeanLoss())
    mine = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    replica(*(part[mine] for part in batch())).backward()
    if rank == 0:
        queue.put([p.grad.numpy() for p in replica.parameters()])
    dist.barrier()
    dist.destroy_process_group()


def test_the_gradient_of_two_processes_is_that_of_the_joined_batch(tmp_path):
    context = mp.get_context("spawn")
    queue, address = context.SimpleQueue(), f"file://{tmp_path}/store"
    ranks = [context.Process(target=_rank, args=(rank, address, queue)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    theirs = queue.get()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    whole = MeanLoss()
    whole(*batch()).backward()
    ours = [p.grad for p in whole.parameters()]
    assert max(float(g.abs().max()) for g in ours) > 1e-3
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(two), rtol=1e-9, atol=1e-12)


def test_shared_out_weights_train_to_the_same_weights(tmp_path):
    """FSDP2 against DDP, two processes each, stopped at four steps and resumed to six: raw and averaged, in float tolerance."""
    states = {}
    for name, strategy in (("ddp", "ddp"), ("fsdp", "{_target_:ddpm_lightning.sharding.FSDP2}")):
        run = [f"hydra.run.dir={name}", "trainer=ddp_cpu", f"trainer.strategy={strategy}", "logger=none"]
        run += ["callbacks=post_hoc", "callbacks.post_hoc_ema.every_n_steps=2"]
        assert (result := script("train.py", *WHOLE, *run, cwd=tmp_path)).returncode == 0, result.stderr
        result = script("train.py", f"resume={name}", "trainer.max_steps=6", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        states[name] = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        assert states[name]["global_step"] == 6
        assert len(list((tmp_path / name / "samples").glob("*_0000006.png"))) == 5
        assert sorted(path.name for path in (tmp_path / name / "ema").iterdir()) == [
            f"step_{n}.ckpt" for n in (2, 4, 6)
        ]
        states[name] |= {
            f"snapshot {std}": average
            for std, average in torch.load(tmp_path / name / "ema" / "step_6.ckpt")["averages"].items()
        }
    for which in ("state_dict", "ema_state_dict", "ema_0.05_state_dict", "snapshot 0.05", "snapshot 0.1"):
        assert states["ddp"][which].keys() == states["fsdp"][which].keys()
        for key, value in states["ddp"][which].items():
            torch.testing.assert_close(value, states["fsdp"][which][key], rtol=1e-4, atol=1e-4)


def two_nodes(*args, cwd):
    """What the first node said."""
    results = torchrun(*args, cwd=cwd, nodes=2)
    assert [result["code"] for result in results] == [0, 0], results
    return results[0]["out"] + results[0]["err"]


def test_two_nodes_of_two_processes_train_one_run_and_sample_the_images_of_one_process(tmp_path):
    run = ["trainer=ddp_cpu", "trainer.num_nodes=2", "logger=none", "callbacks.sample_grid.num_samples=5"]
    two_nodes("train.py", *WHOLE, *run, cwd=tmp_path)
    (config,) = (tmp_path / "outputs").glob("*/*/config.yaml")  # one folder for all
    folder = config.parent
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["processes"], summary["steps"]) == ("finished", 4, 4)
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "2", "4", "4", "4"]  # the last one's by log SNR

    drawing = [
        f"ckpt_path={folder}",
        "sampler=ddim",
        "sampler.num_steps=4",
        "format=npz",
        "num_samples=10",
        "batch_size=3",
    ]
    said = two_nodes("sample.py", *drawing, "out_dir=four", cwd=tmp_path)
    assert said.count("Saved 10 images to") == 1
    assert script("sample.py", *drawing, "out_dir=one", cwd=tmp_path).returncode == 0
    one, four = (np.load(tmp_path / name / "samples.npz")["images"] for name in ("one", "four"))
    assert one.shape == (10, 8, 8, 1)
    assert np.array_equal(one, four)
    page = [*drawing, "format=html", "overwrite=true"]
    two_nodes("sample.py", *page, "out_dir=four", cwd=tmp_path)
    assert script("sample.py", *page, "out_dir=one", cwd=tmp_path).returncode == 0
    one, four = ((tmp_path / name / "reverse_process.html").read_bytes() for name in ("one", "four"))
    assert one == four

    # and the grid of five that four processes drew in training is the one that a single process draws
    grid = ["sampler=ddim", "sampler.num_steps=4", "num_samples=5", "format=grid", "out_dir=grid"]
    assert script("sample.py", f"ckpt_path={folder}", *grid, cwd=tmp_path).returncode == 0
    ours, theirs = (
        np.asarray(Image.open(p)) for p in (folder / "samples/grid_0000004.png", tmp_path / "grid/grid.png")
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 1

    # a run that torchrun started goes on as one
    two_nodes("train.py", f"resume={folder}", "trainer.max_steps=6", cwd=tmp_path)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
