"""Train a diffusion model: `ddpm-train model=unet_small schedule=cosine trainer.devices=4`."""

from omegaconf import DictConfig

from ddpm_lightning.cli.entry import run, user_errors
from ddpm_lightning.cli.starting import DATA, TORCH, announce

__all__ = ["main"]


def train(config: DictConfig) -> float | None:
    announce(TORCH)
    from ddpm_lightning import runs  # torch and lightning are imported only when there is work

    announce(DATA)
    with user_errors(config):
        return runs.train(config)
    return None


def main() -> None:
    run(train)


if __name__ == "__main__":
    main()
