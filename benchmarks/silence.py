"""Run a command, and list every silence of its output: how long, and what was on the screen before it.

    python benchmarks/silence.py [--pipe] [--above SECONDS] [--columns N] COMMAND ...

The command runs in a pseudo-terminal of 80 columns, or with --pipe through a pipe. Any output ends a silence, also a
progress bar that moves. The last line says whether a line was wider than the terminal.
"""

import argparse
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipe", action="store_true", help="a pipe in place of a pseudo-terminal")
    parser.add_argument("--above", type=float, default=2.0, help="seconds (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=80, help="of the terminal (default: %(default)s)")
    parser.add_argument("--log", help="a file for all output, byte by byte")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    ours, theirs = os.pipe() if options.pipe else pty.openpty()
    if not options.pipe:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, options.columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    env.pop("COLUMNS", None)
    began = time.monotonic()
    stdin = subprocess.DEVNULL if options.pipe else theirs
    process = subprocess.Popen(options.command, stdin=stdin, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    silences, output = follow(ours, began, options.above)
    code, seconds = process.wait(), time.monotonic() - began
    if options.log:
        with open(options.log, "wb") as file:
            file.write(output)
    print(f"{' '.join(options.command)[:150]}")
    print(f"  exit code {code}, {seconds:.1f} s, {len(silences)} silences above {options.above:g} s")
    for start, length, line in silences:
        print(f"  {length:5.1f} s from {start:6.1f} s, after: {line[:110]!r}")
    widest = max(map(len, lines_of(output)), default=0)
    returns, lines = output.count(b"\r") - output.count(b"\r\n"), output.count(b"\n")
    print(f"  widest line {widest}, {returns} carriage returns, {lines} lines")
    return code


def follow(descriptor: int, began: float, above: float) -> tuple[list[tuple[float, float, str]], bytes]:
    """The silences (start, seconds, the line before) until the output ends, and the output."""
    silences, output, last = [], b"", began
    while True:
        select.select([descriptor], [], [])
        try:
            new = os.read(descriptor, 65536)
        except OSError:  # a pseudo-terminal without a process
            new = b""
        now = time.monotonic()
        if now - last > above:
            silences.append((last - began, now - last, next(filter(str.strip, reversed(lines_of(output))), "")))
        if not new:
            return silences, output
        output, last = output + new, now


def lines_of(output: bytes) -> list[str]:
    """What the lines of the output hold, without colors and moves of the cursor."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode(errors="replace"))
    return re.split(r"[\r\n]+", plain)


if __name__ == "__main__":
    sys.exit(main())
