"""Train a diffusion model: `ddpm-train model=unet_small schedule=cosine trainer.devices=4`."""

from omegaconf import DictConfig

from ddpm_lightning.cli.entry import run, user_errors
from ddpm_lightning.terminal import loading

__all__ = ["main"]


def train(config: DictConfig) -> float | None:
    with loading():
        from ddpm_lightning import runs  # torch and lightning are imported only when there is work

    with user_errors(config):
        return runs.train(config)
    return None


def main() -> None:
    run(train)


if __name__ == "__main__":
    main()
