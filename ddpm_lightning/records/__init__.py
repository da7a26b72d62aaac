"""What an earlier run or a stranger has written, read as plain data: YAML, PyTorch's files, names that have moved since."""
