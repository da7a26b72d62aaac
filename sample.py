"""Sample images from a checkpoint: `python sample.py ckpt_path=... num_samples=64 sampler=ddim sampler.num_steps=50`."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(config: DictConfig) -> None:
    from ddpm_lightning import runs  # torch is imported only when there is work

    with cli.user_errors():
        runs.sample(config)


if __name__ == "__main__":
    cli.run(main)
