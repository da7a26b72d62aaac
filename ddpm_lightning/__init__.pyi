from . import callbacks as callbacks
from . import denoiser as denoiser
from . import images as images
from . import interop as interop
from . import likelihood as likelihood
from . import losses as losses
from . import models as models
from . import module as module
from . import runs as runs
from . import samplers as samplers
from . import schedules as schedules
from .callbacks import EMA as EMA
from .data.datamodule import ImageDataModule as ImageDataModule
from .denoiser import PREDICTIONS as PREDICTIONS
from .denoiser import Denoiser as Denoiser
from .denoiser import Guided as Guided
from .errors import UserError as UserError
from .interop import from_diffusers as from_diffusers
from .interop import to_diffusers as to_diffusers
from .likelihood import bits_per_dim as bits_per_dim
from .losses import Loss as Loss
from .models import MLP as MLP
from .models import DiT as DiT
from .models import UNet as UNet
from .module import DDPM as DDPM
from .runs import load_denoiser as load_denoiser
from .runs import save_denoiser as save_denoiser
from .samplers import DDIM as DDIM
from .samplers import Ancestral as Ancestral
from .samplers import DPMSolver2M as DPMSolver2M
from .samplers import Heun as Heun
from .samplers import Sampler as Sampler
from .samplers import Step as Step
from .samplers import UniPC as UniPC
from .schedules import NoiseSchedule as NoiseSchedule

CONF_DIR: str
__version__: str
