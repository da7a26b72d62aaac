"""What many processes compute is what one computes: gradients of the joined batch, noise of each rank's own."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ddpm_lightning import seeds
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.losses import Loss
from ddpm_lightning.models import UNet
from ddpm_lightning.schedules import linear

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


def test_no_two_ranks_or_batches_share_their_noise():
    """Also not under accumulation, where the optimiser's step stands still: the counter is that of micro-batches."""
    keys = {seeds.derive(0, "step", batch, rank) for batch in range(500) for rank in range(8)}
    assert len(keys) == 500 * 8
    firsts = {torch.randn((), generator=torch.Generator().manual_seed(key)).item() for key in sorted(keys)[:1000]}
    assert len(firsts) == 1000
