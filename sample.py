"""Sample images from a checkpoint: `python sample.py ckpt_path=... num_samples=64 sampler=ddim sampler.num_steps=50`."""

from ddpm_lightning.cli.sample import main

if __name__ == "__main__":
    main()
