"""A user's script under mypy --strict: the public names have types."""

import subprocess
import sys

from tests.helpers.configs import ROOT

SCRIPT = """
import torch
from ddpm_lightning import DDIM, DDPM, EMA, Denoiser, Guided, Loss, UNet, __version__, load_denoiser, save_denoiser, schedules

denoiser = Denoiser(UNet(1, 1, base_channels=32), schedules.cosine())
module = DDPM(denoiser, Loss(), torch.optim.Adam)
reveal_type(load_denoiser("run", trust=("mylab",)))
reveal_type(DDIM(20)(Guided(denoiser, 2.0), torch.zeros(1)))
reveal_type(schedules.linear().log_snr)
reveal_type(__version__)
save_denoiser(denoiser, 7)
UNet(1, 1, base_chanels=32)
"""


def test_public_names_have_types(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache")]
    result = subprocess.run(
        [*command, "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "script.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.partition("script.py:")[2] for line in result.stdout.splitlines() if "script.py:" in line]
    told = "\n".join(lines)
    for kind in ("ddpm_lightning.denoiser.denoiser.Denoiser", "torch._tensor.Tensor", "str"):
        assert f'Revealed type is "{kind}"' in told.replace("builtins.", ""), result.stdout
    errors = [line for line in lines if "error" in line]
    assert len(errors) == 2, errors
    assert 'Argument 2 to "save_denoiser" has incompatible type "int"' in errors[0]
    assert 'Unexpected keyword argument "base_chanels"' in errors[1]
