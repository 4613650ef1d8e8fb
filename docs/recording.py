"""A command, really run on a terminal -> an animated picture of what it showed: python recording.py OUT.gif WORD...

    python docs/recording.py docs/demo.gif expo-search --pair demo --trials 20

The terminal is a pseudo-terminal whose screen pyte keeps. Waiting is shortened (`SPEED`, `LONGEST_S`); nothing else is
changed, and the command's exit code is the script's. Needs the extra `docs`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path

import matplotlib
import pyte
from PIL import Image, ImageColor, ImageDraw, ImageFont

COLUMNS, LINES = 112, 46
SPEED, SHORTEST_S, LONGEST_S, LAST_S = 20, 0.08, 1.2, 6.0
FONT_SIZE = 13
SHADES = 7  # of a colour, for the edges of letters
BACKGROUND, FOREGROUND = "#1b1f24", "#d7dce2"
NAMED = {"red": "#f47067", "green": "#8ddb8c", "yellow": "#e0c285", "brown": "#e0c285", "blue": "#6cb6ff",
         "magenta": "#dcbdfb", "cyan": "#76e3ea", "white": "#d7dce2", "black": "#545d68"}  # fmt: skip
Line = list[tuple[str, str, bool]]  # characters with their colours, and whether they are bold
Frame = tuple[float, list[Line]]  # when, and its lines


def record(words: list[str]) -> tuple[list[Frame], int]:
    """Run a command, and keep each different screen with its time in seconds."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {' '.join(words)}\r\n".encode())
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(words[0], words)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    begun, frames = time.monotonic(), [(0.0, look(screen))]
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            break
        if not data:
            break
        stream.feed(data)
        if (shown := look(screen)) != frames[-1][1]:
            frames.append((time.monotonic() - begun, shown))
    return frames, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def look(screen: pyte.Screen) -> list[Line]:
    return [[(c.data, c.fg, c.bold) for c in (screen.buffer[y][x] for x in range(COLUMNS))] for y in range(LINES)]


def draw(lines: list[Line], font: ImageFont.FreeTypeFont, bold_font: ImageFont.FreeTypeFont) -> Image.Image:
    """A screen; the letters of both fonts are equally wide."""
    width, height = round(font.getlength("M")), FONT_SIZE + 4
    image = Image.new("RGB", (COLUMNS * width + 16, LINES * height + 16), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for y, line in enumerate(lines):
        for x, (character, colour, bold) in enumerate(line):
            if character.strip():
                shade = FOREGROUND if colour == "default" else NAMED.get(colour, f"#{colour}")
                pen.text((8 + x * width, 8 + y * height), character, fill=shade, font=bold_font if bold else font)
    return image


def palette() -> Image.Image:
    """Each colour in steps from the background: of a picture's own pixels grey would be made for its one green row."""
    ground = ImageColor.getrgb(BACKGROUND)
    ends = [ImageColor.getrgb(colour) for colour in dict.fromkeys((FOREGROUND, *NAMED.values()))]
    mixed = [
        round(low + (high - low) * step / SHADES)
        for end in ends
        for step in range(1, SHADES + 1)
        for low, high in zip(ground, end, strict=True)
    ]
    image = Image.new("P", (1, 1))
    image.putpalette([*ground, *mixed])
    return image


def main(out: Path, words: list[str]) -> int:
    frames, code = record(words)
    shown = [0.0]  # when each frame begins in the picture, in seconds; too short ones are left out
    for (before, _), (now, _) in itertools.pairwise(frames):
        shown.append(shown[-1] + min((now - before) / SPEED, LONGEST_S))
    images, durations = list[Image.Image](), list[int]()
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    fonts = [ImageFont.truetype(str(folder / f"DejaVuSansMono{x}.ttf"), FONT_SIZE) for x in ("", "-Bold")]
    begun, colours = 0.0, palette()
    for i, (_, lines) in enumerate(frames):
        after = shown[i + 1] if i + 1 < len(frames) else shown[i] + LAST_S
        if after - begun >= SHORTEST_S:
            images.append(draw(lines, *fonts).quantize(palette=colours, dither=Image.Dither.NONE))
            durations.append(round((after - begun) * 1000))
            begun = after
    images[0].save(out, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
