"""What the command line and the package do without."""

import subprocess
import sys

from tests.helpers.configs import ROOT


def test_the_command_line_needs_no_torch():
    code = (
        "import sys, ddpm_lightning.cli.entry; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'wandb')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_is_imported_without_what_windows_lacks():
    code = """
import importlib, pkgutil, signal, sys, warnings
warnings.simplefilter("ignore")
sys.modules["fcntl"] = None
del signal.SIGUSR1, signal.SIGKILL
import ddpm_lightning
names = [module.name for module in pkgutil.walk_packages(ddpm_lightning.__path__, "ddpm_lightning.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 90
