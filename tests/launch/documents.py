"""The commands that README.md, docs/*.md and the examples of `--help` show, as a reader would type them."""

import argparse
import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

from launch.arguments import make_parser

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OWN = ("flamingo", "make", "python", "pip", "mkdocs")  # programs of this project and its environment
OTHERS = ("cd", "cp", "docker", "export", "gcloud", "git", "grep", "kubectl", "mkdir", "mlflow", "pip-audit")
OTHERS += ("python3.11", "wandb", "xpk", "xprof")  # programs of others; what they are told is not looked at

FENCED = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
OF_FILE = re.compile(r"# (\S+\.py)\b")  # first line of a Python block that is a file of the reader's own


@dataclasses.dataclass(frozen=True)
class Command:
  """One command.

  Attributes:
    page: where it stands.
    words: as a shell would split it, the program first, without its folder.
    whole: it can be typed as it stands; False for those that are only spoken of, or have `...` for what a page said
      before.
  """

  page: str
  words: tuple[str, ...]
  whole: bool

  def __str__(self) -> str:
    return f"{self.page}: {shlex.join(self.words)}"


def all_commands() -> list[Command]:
  pages = [command for path in PAGES for command in commands(path.read_text(), str(path.relative_to(ROOT)))]
  return pages + [command for name, parser in every_verb() for command in commands_of_help(name, parser)]


def commands(text: str, page: str) -> Iterator[Command]:
  """Those of a page: lines of its blocks, and code within its sentences that begins with a program of ours."""
  for block in FENCED.finditer(text):
    if block[1] in ("", "sh"):
      yield from of_lines(block[2], page)
  text = FENCED.sub("", text)
  for block in INDENTED.finditer(text):
    yield from of_lines(block[0], page)
  for code in INLINE.finditer(INDENTED.sub("\n", text)):
    if re.match(rf"(\S*/)?({'|'.join(OWN)})\s", code[1]):
      yield from of_line(code[1].replace("\n", " "), page, whole=False)


def blocks(text: str, language: str) -> list[str]:
  """Fenced blocks of one language."""
  return [block[2] for block in FENCED.finditer(text) if block[1] == language]


def files(text: str) -> dict[str, str]:
  """Python files that a page tells its reader to write, by their names."""
  named = ((OF_FILE.match(block), block) for block in blocks(text, "python"))
  return {match[1]: block for match, block in named if match}


def of_lines(block: str, page: str) -> Iterator[Command]:
  for line in block.replace("\\\n", " ").splitlines():
    line = re.sub(r"^\s*(\$ |run: |setup: )?", "", line)  # a prompt, and keys of SkyPilot's YAML
    if re.match(rf"([A-Z_]+=\S+ )*(\S*/)?({'|'.join(OWN + OTHERS)})\s", line):
      yield from of_line(line, page, whole=True)


def of_line(line: str, page: str, *, whole: bool) -> Iterator[Command]:
  """Several where they are joined, or one hands another to a shell of its own."""
  line = re.sub(r"\[(--[^\]]*)\]", r"\1", line)  # what may be left out
  words = shlex.split(line, comments=True)
  for part in split(words, "&&"):
    part = part[: part.index(">")] if ">" in part else part
    while re.fullmatch(r"[A-Z_]+=.*", part[0]):
      part = part[1:]
    program, given = pathlib.PurePath(part[0]).name, [word for word in part[1:] if word != "..."]
    yield Command(page, (program, *given), whole and "..." not in part)
    if program in ("gcloud", "xpk"):
      for word in given:
        if word.startswith("--command="):
          yield from of_line(word.removeprefix("--command="), page, whole=whole)


def split(words: list[str], at: str) -> Iterator[list[str]]:
  part: list[str] = []
  for word in [*words, at]:
    if word != at:
      part.append(word)
    elif part:
      yield part
      part = []


def every_verb(parser: argparse.ArgumentParser | None = None, name: str = "flamingo"):
  """(`flamingo VERB` or `flamingo VERB JOB`, its parser) of all that do something."""
  parser = parser or make_parser()
  below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
  if not below:
    yield name, parser
  for choices in below:
    for verb, chosen in choices.items():
      yield from every_verb(chosen, f"{name} {verb}")


def commands_of_help(name: str, parser: argparse.ArgumentParser) -> Iterator[Command]:
  return of_lines((parser.epilog or "").removeprefix("example: "), f"{name} --help")


def forgiving(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
  """The same parser, to which nothing need be given: for commands that are only spoken of."""
  for action in parser._actions:
    action.required = False
    if isinstance(action, argparse._SubParsersAction):
      for below in action.choices.values():
        forgiving(below)
    elif not action.option_strings:
      action.nargs = {None: "?", "+": "*"}.get(action.nargs, action.nargs)
  for group in parser._mutually_exclusive_groups:
    group.required = False
  return parser
