"""Lightning callbacks: EMA, checkpoints, metrics, figures and guards."""

from ddpm_lightning.callbacks.checkpoint import AtomicCheckpointIO, BestCheckpoint, NewestCheckpoint, SaveBeforeFigures
from ddpm_lightning.callbacks.ema import EMA, averaged_weights
from ddpm_lightning.callbacks.generation_metrics import GenerationMetrics
from ddpm_lightning.callbacks.loss_guard import LossGuard
from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.pictures.forward_strip import ForwardStrip
from ddpm_lightning.callbacks.pictures.grid import SampleGrid
from ddpm_lightning.callbacks.pictures.log_snr import LogSNRCurve
from ddpm_lightning.callbacks.pictures.neighbors import Neighbors
from ddpm_lightning.callbacks.pictures.scatter import Scatter
from ddpm_lightning.callbacks.pictures.schedule_curves import ScheduleCurves
from ddpm_lightning.callbacks.pictures.trajectory import Trajectory
from ddpm_lightning.callbacks.post_hoc_ema import PostHocEMA
from ddpm_lightning.callbacks.progress import Progress
from ddpm_lightning.callbacks.randomness import Randomness
from ddpm_lightning.callbacks.stop_signals import StopSignals
from ddpm_lightning.callbacks.training_metrics import TrainingMetrics

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "ForwardStrip",
    "GenerationMetrics",
    "LogSNRCurve",
    "LossGuard",
    "Neighbors",
    "NewestCheckpoint",
    "Periodic",
    "PostHocEMA",
    "Progress",
    "Randomness",
    "SampleGrid",
    "SaveBeforeFigures",
    "Scatter",
    "ScheduleCurves",
    "StopSignals",
    "TrainingMetrics",
    "Trajectory",
    "averaged_weights",
]
