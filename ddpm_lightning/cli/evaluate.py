"""Compare a checkpoint's samples with its data: `ddpm-evaluate ckpt_path=... num_samples=10000 sampler=ddim sampler.num_steps=50`."""

from omegaconf import DictConfig

from ddpm_lightning.cli.entry import run, user_errors
from ddpm_lightning.terminal import loading

__all__ = ["main"]


def evaluate(config: DictConfig) -> None:
    with loading():
        from ddpm_lightning.evaluation import pipeline  # torch is imported only when there is work

    with user_errors(config):
        pipeline.evaluate(config)


def main() -> None:
    run(evaluate)


if __name__ == "__main__":
    main()
