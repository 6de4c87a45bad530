"""WordNet from its own files, as far as metrics need it: senses of a word, and Wu-Palmer similarity.

Results equal NLTK's, ties included. The files are WordNet's database (`dict`): index, data and exceptions of each part
of speech; Debian's package wordnet-base puts them into /usr/share/wordnet.
"""

import collections
import dataclasses
import functools
import math
import pathlib

from flamingo_jax.errors import UserError

_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_ENDINGS = {
  "n": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
  "v": "s: ies:y es:e es: ed:e ed: ing:e ing:",
  "a": "er: est: er:e est:e",
  "r": "",
}
ROOT = "*ROOT*"


@dataclasses.dataclass(frozen=True)
class Sense:
  """One synset.

  Attributes:
    name: such as dog.n.01.
    part: n, v, a, s or r.
    words: its words, with underscores for spaces.
    above: the senses that are more general.
  """

  name: str
  part: str
  words: tuple[str, ...]
  above: tuple["Sense", ...] = dataclasses.field(repr=False, compare=False)

  @functools.cached_property
  def distances(self) -> dict[str, int]:
    """The steps up to each more general sense, itself included, by name."""
    found, waiting = {}, collections.deque([(self, 0)])
    while waiting:
      sense, steps = waiting.popleft()
      if sense.name not in found:
        found[sense.name] = steps
        waiting.extend((other, steps + 1) for other in sense.above)
    return found

  @functools.cached_property
  def depths(self) -> tuple[int, int]:
    """The fewest and the most steps up to a root."""
    if not self.above:
      return 0, 0
    return 1 + min(other.depths[0] for other in self.above), 1 + max(other.depths[1] for other in self.above)

  @functools.cached_property
  def family(self) -> dict[str, "Sense"]:
    """Itself and all that is more general, by name."""
    return functools.reduce(lambda known, other: known | other.family, self.above, {self.name: self})


class WordNet:
  """WordNet's database in a folder.

  Args:
    folder: holds index.noun, data.noun, noun.exc and the same of verb, adj and adv.

  Raises:
    UserError: a file is missing.
  """

  def __init__(self, folder: str | pathlib.Path):
    self._folder = pathlib.Path(folder)
    names = [name for kind in _FILES.values() for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc")]
    missing = [name for name in names if not (self._folder / name).is_file()]
    if missing:
      raise UserError(
        f"{self._folder}: not the folder of WordNet's database; it lacks {', '.join(missing[:3])}"
        f"{' and more' if len(missing) > 3 else ''}. Name the folder `dict` of WordNet 3.0, or /usr/share/wordnet of"
        f" Debian's package wordnet-base."
      )
    self._data = {part: (self._folder / f"data.{kind}").read_bytes() for part, kind in _FILES.items()}
    self._index = {part: self._read_index(kind) for part, kind in _FILES.items()}
    self._exceptions = {part: self._read_exceptions(kind) for part, kind in _FILES.items()}
    self._senses: dict[tuple[str, int], Sense] = {}

  def senses(self, word: str) -> list[Sense]:
    """The senses of a word and of what it may be a form of: nouns, verbs, adjectives, adverbs, the commonest first."""
    return [
      self._sense(part, offset)
      for part in _FILES
      for form in self.base_forms(word, part)
      for offset in self._index[part][form]
    ]

  def base_forms(self, word: str, part: str) -> list[str]:
    """The word itself and what it may be a form of, as far as WordNet has it as this part of speech."""
    word = word.lower()
    endings = (pair.split(":") for pair in _ENDINGS[part].split())
    regular = [word[: -len(old)] + new for old, new in endings if word.endswith(old)]
    forms = [word, *self._exceptions[part].get(word, regular)]
    return [form for form in dict.fromkeys(forms) if form in self._index[part]]

  def _read_index(self, kind: str) -> dict[str, list[int]]:
    lines = (self._folder / f"index.{kind}").read_text("utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith(" "))
    return {row[0]: [int(offset) for offset in row[6 + int(row[3]) :]] for row in rows}

  def _read_exceptions(self, kind: str) -> dict[str, list[str]]:
    lines = (self._folder / f"{kind}.exc").read_text("utf-8").splitlines()
    return {row[0]: row[1:] for row in (line.split() for line in lines) if row}

  def _sense(self, part: str, offset: int) -> Sense:
    """One line of a data file: offset, file, part, words (their number in hexadecimal), pointers (in decimal)."""
    if (part, offset) not in self._senses:
      line = self._data[part][offset : self._data[part].index(b"\n", offset)].decode()
      fields = line.split(" | ")[0].split()
      count = int(fields[3], 16)
      words = tuple(word.split("(")[0] for word in fields[4 : 4 + 2 * count : 2])  # "(p)" is a note on its place
      pointers = fields[5 + 2 * count :]
      above = tuple(
        self._sense(pointers[start + 2], int(pointers[start + 1]))
        for start in range(0, 4 * int(fields[4 + 2 * count]), 4)
        if pointers[start] in ("@", "@i")
      )
      number = self._index[part][words[0].lower()].index(offset) + 1
      self._senses[part, offset] = Sense(f"{words[0].lower()}.{fields[2]}.{number:02d}", fields[2], words, above)
    return self._senses[part, offset]


def wu_palmer(first: Sense, second: Sense) -> float:
  """Wu-Palmer similarity, 2 depth / (steps from one + steps from the other to the root by way of what they share).

  What they share is the sense above both whose shortest way to a root is longest; verbs, adjectives and adverbs have
  one root thought above all. 0 where they share nothing.
  """
  rooted = first.part != "n" or second.part != "n"
  common = {name: sense.depths for name, sense in first.family.items() if name in second.family}
  if rooted:
    common[ROOT] = (0, 0)
  if not common:
    return 0.0
  deepest = max(fewest for fewest, _ in common.values())
  candidates = [name for name, (fewest, _) in common.items() if fewest == deepest]
  subsumer = first.name if first.name in candidates else min(candidates)
  depth = common[subsumer][1] + 1
  steps = [_steps(sense, subsumer, first.family, rooted) for sense in (first, second)]
  return 2 * depth / (sum(steps) + 2 * depth)


def _steps(sense: Sense, subsumer: str, family: dict[str, Sense], rooted: bool) -> float:
  """The fewest steps between a sense and one above it, by way of any that is above both."""
  if sense.name == subsumer:
    return 0
  others = {ROOT: 0} if subsumer == ROOT else _rooted(family[subsumer].distances, rooted)
  own = _rooted(sense.distances, rooted)
  return min((steps + others[name] for name, steps in own.items() if name in others), default=math.inf)


def _rooted(distances: dict[str, int], rooted: bool) -> dict[str, int]:
  return distances | {ROOT: max(distances.values()) + 1} if rooted else distances
