"""Train a diffusion model: `python train.py model=unet_small schedule=cosine trainer.devices=4`."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    from ddpm_lightning import runs  # torch and lightning are imported only when there is work

    with cli.user_errors():
        return runs.train(config)
    return None


if __name__ == "__main__":
    cli.run(main)
