"""What a terminal shows."""

import io
import re


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True

    @property
    def screen(self):
        """The lines that are seen, without colors."""
        return screen_of(self.getvalue())


def screen_of(output):
    """The lines that are seen after such an output; only what a line needs to be drawn anew is understood."""
    lines, row, column = [""], 0, 0
    for code, end, text in re.findall(r"\x1b\[([0-9;?]*)([a-zA-Z])|([^\x1b])", output):
        if end == "A":
            row -= int(code or 1)
        elif end == "K":
            lines[row] = ""
        elif end:
            assert end == "m", (code, end)
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip().split("\n") if any(lines) else []
