"""The command `python -m ddpm_lightning` in a process of its own."""

import subprocess
import sys

from PIL import Image

from tests.helpers.configs import ROOT


def test_schedules_are_drawn(tmp_path):
    command = [sys.executable, "-m", "ddpm_lightning", "schedules", "--num-steps", "100"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "schedules.png\n"), done.stderr
    with Image.open(tmp_path / "schedules.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # curves, not an empty page
