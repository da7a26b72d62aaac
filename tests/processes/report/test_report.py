"""What a run's start does without."""

import subprocess
import sys


def test_the_callback_is_light():
    code = "import sys, ddpm_lightning.cli.sweeps as s; s.Report(); sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
