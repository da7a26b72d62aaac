"""Compare a checkpoint's samples with its data: `python evaluate.py ckpt_path=... num_samples=10000 sampler=ddim sampler.num_steps=50`."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    from ddpm_lightning.evaluation.pipeline import evaluate  # torch is imported only when there is work

    with cli.user_errors():
        evaluate(config)


if __name__ == "__main__":
    cli.run(main)
