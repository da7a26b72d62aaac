"""DDPM in one file: trains on 8x8 digits by Algorithm 25.1 and samples a grid by Algorithm 25.2 (Murphy 2023).

python examples/ddpm_in_one_file.py [--steps 2500] [--images 64] [--out digits.png]

There is neither Lightning nor Hydra in it: the schedule, the network and the sampler are the package's, the loop is plain PyTorch. Settings and
random numbers are those of `python train.py experiment=lecture_digits`: losses, weights and grid are bit-identical.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from ddpm_lightning import Ancestral, Denoiser, UNet, schedules
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.source import Form, Share
from ddpm_lightning.images import SeededNoise, from_uint8, save_png
from ddpm_lightning.seeds import derive
from ddpm_lightning.sheets import contact_sheet

SEED = 0
BATCH_SIZE = 64
LEARNING_RATE, WARMUP_STEPS = 1e-3, 200
SHAPE = (1, 8, 8)


def build() -> Denoiser:
    """ε_θ and the schedule, which make an estimate of x_0: 0.3 M parameters, T = 1000, β from 1e-4 to 0.02."""
    torch.manual_seed(SEED)
    network = UNet(
        in_channels=1,
        out_channels=1,
        base_channels=32,
        channel_multipliers=[1, 1],
        num_res_blocks=1,
        attention_levels=[1],
        dropout=0.0,
        norm_groups=8,
    )
    return Denoiser(network, schedules.linear(1000), prediction="epsilon")


def batches() -> Iterator[Tensor]:
    """x_0 ~ q(x_0): batches (64, 1, 8, 8) in [−1, 1] without end; a tenth of the digits is held out, as in train.py."""
    channels, *size = SHAPE
    dataset = digits().prepared(Form(channels, size, val_fraction=0.1, seed=SEED))
    loader = dataset.train_loader(Share(BATCH_SIZE), torch.device("cpu"))
    while True:
        for batch in loader:
            yield from_uint8(batch.x0)


def train(denoiser: Denoiser, num_steps: int) -> Iterator[float]:
    """Algorithm 25.1, which yields the loss of each step."""
    schedule, T = denoiser.schedule, denoiser.schedule.num_steps
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE, fused=True)
    warmup = LinearLR(optimizer, start_factor=1e-8, total_iters=WARMUP_STEPS)
    denoiser.train()
    for step, x0 in zip(range(num_steps), batches(), strict=False):
        torch.manual_seed(derive(SEED, "step", step, 0))  # every draw is computed from the seed and the step
        t = torch.randint(1, T + 1, (len(x0), 1, 1, 1))  # t ~ U{1, …, T}
        noise = torch.randn(x0.shape)  # ε ~ N(0, I)
        x_t = schedule.q_sample(x0, t, noise)  # √ᾱ_t x_0 + √(1−ᾱ_t) ε, Eq. 25.3
        error = noise - denoiser.predict(x_t, t)  # ε − ε_θ(x_t, t)
        loss = error.square().flatten(1).mean(1).mean()  # L_simple
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        yield loss.item()


def sample(denoiser: Denoiser, count: int) -> Tensor:
    """Algorithm 25.2, all T steps: (count, 1, 8, 8) in about [−1, 1], image i always from the same noise."""
    denoiser.eval()
    noise = SeededNoise(SEED, range(count))
    return Ancestral(clip=None)(denoiser, noise.draw(SHAPE), randn=noise)


def save(images: Tensor, path: Path) -> None:
    """Write a contact sheet."""
    save_png(contact_sheet(images).pixels, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args()

    denoiser, recent = build(), []
    for step, loss in enumerate(train(denoiser, arguments.steps), start=1):
        recent.append(loss)
        if step % 250 == 0 or step == arguments.steps:
            print(f"step {step:>5}  loss {sum(recent) / len(recent):.4f}", flush=True)
            recent.clear()
    save(sample(denoiser, arguments.images), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
