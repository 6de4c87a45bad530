"""Numbers as options of the command line: what is out of range is refused by argparse, with what would be right."""

import argparse
import math
from collections.abc import Callable


def number(kind: type, fits: Callable[[float], bool], right: str) -> Callable[[str], float]:
  """A reader of numbers of a kind that fit. NaN fits nothing that is said by a comparison."""

  def read(text: str):
    value = kind(text)
    if not fits(value):
      raise argparse.ArgumentTypeError(f"{text} is not {right}")
    return value

  read.__name__ = kind.__name__  # what argparse calls it where the text is no number at all
  return read


positive = number(int, lambda value: value >= 1, "at least 1")
natural = number(int, lambda value: value >= 0, "at least 0")
seconds = number(float, lambda value: 0 <= value < math.inf, "a time in seconds")
finite = number(float, math.isfinite, "a finite number")
aspect = number(float, lambda value: 1 <= value < math.inf, "a finite number of at least 1")  # longer side over shorter
