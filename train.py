"""Train a diffusion model: `python train.py model=unet_small schedule=cosine trainer.devices=4`."""

from ddpm_lightning.cli.train import main

if __name__ == "__main__":
    main()
