"""Sample images from a checkpoint: `ddpm-sample ckpt_path=... num_samples=64 sampler=ddim sampler.num_steps=50`."""

from omegaconf import DictConfig

from ddpm_lightning.cli.entry import run, user_errors
from ddpm_lightning.terminal import loading

__all__ = ["main"]


def sample(config: DictConfig) -> None:
    with loading():
        from ddpm_lightning import runs  # torch is imported only when there is work

    with user_errors(config):
        runs.sample(config)


def main() -> None:
    run(sample)


if __name__ == "__main__":
    main()
