"""Read records of earlier or untrusted runs as plain data: YAML, PyTorch files, renamed classes."""
