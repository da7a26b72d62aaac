#!/usr/bin/env bash
# All figures of docs/speed.md on the GPU of this machine, in at most ten minutes and without a network; prints as it goes.
#   bash benchmarks/gpu.sh [FASHION_MNIST_FOLDER]      TINY=1: on a CPU, at sizes that mean nothing
set -uo pipefail
cd "$(dirname "$0")"
tiny=${TINY:+--tiny --seconds 0.2}
part() { timeout "${LIMIT:-90}" python gpu.py "$@" $tiny || echo "$*: failed ($?)"; }
python -c "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
for shape in unet_35m unet_1m; do
  for how in graphs eager compile; do part step --shape "$shape" --how "$how"; done
  part step --shape "$shape" --network diffusers --how eager
done
LIMIT=150 part step --shape unet_35m --network diffusers --how compile
if python -c "import denoising_diffusion_pytorch" 2>/dev/null; then part step --shape unet_35m --network denoising_diffusion_pytorch --how eager; fi
part step --shape unet_35m --how graphs --precision tf32
part step --shape unet_35m --network diffusers --how eager --precision tf32
for shape in dit_s unet_256; do part step --shape "$shape"; done
part run --shape unet_35m
part run --shape unet_1m
part sample --shape unet_35m
part resume
if [ $# -gt 0 ]; then LIMIT=400 part fashion --data "$1"; fi
