"""Compare a checkpoint's samples with its data: `python evaluate.py ckpt_path=... num_samples=10000 sampler=ddim sampler.num_steps=50`."""

from ddpm_lightning.cli.evaluate import main

if __name__ == "__main__":
    main()
