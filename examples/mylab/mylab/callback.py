"""A callback: what it needs of the run it is handed by the names of its parameters (sampler, shape, num_classes, ema, ...)."""

from lightning.pytorch import Callback


class Brightness(Callback):
    """Logs the mean of the averaged weights' samples; bars fill one eighth of the image."""

    def __init__(self, sampler, shape, ema=None):
        self.sampler, self.shape, self.ema = sampler, shape, ema

    def on_validation_end(self, trainer, pl_module):
        from ddpm_lightning.callbacks import averaged_weights
        from ddpm_lightning.images import SeededNoise

        noise = SeededNoise(0, range(16))
        with averaged_weights(pl_module, self.ema):
            images = self.sampler(pl_module.denoiser, noise.draw(self.shape).to(pl_module.device), randn=noise)
        for logger in trainer.loggers:
            logger.log_metrics({"val/brightness": (images.mean().item() + 1) / 2}, trainer.global_step)
