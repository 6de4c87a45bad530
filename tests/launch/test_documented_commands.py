"""What README.md, docs/*.md and `--help` tell a reader to type.

Every command is read by the real parser; configs that are in the tree, or that the page itself writes out, are loaded
with the overrides given and checked whole; options are checked as far as a verb does so before it opens anything. What
runs here: the lines in RUN, changed only where it says so, one of docs/inspect.md and one of docs/data.md; and
test_tutorial.py runs the tutorial line after line. All else is run by other tests, with folders and sizes of their own
(RUN_ELSEWHERE), not in the very words of the page: trainings would take days; or by none (NOT_RUN). What other programs
are told (gcloud, docker, xpk, ...) is not looked at.
"""

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re

import pytest
from documents import OTHERS, OWN, PAGES, ROOT, Command, all_commands, blocks, every_verb, files, forgiving
from evaluated import film

from launch.arguments import make_parser
from launch.cli import check_train, main, take_overrides
from launch.config import load_config
from launch.data_build import read_settings
from launch.evaluate import read_evaluation
from launch.experiment import read_experiment
from launch.launchers import checked
from launch.sweep.settings import TrialsConfig, make_trials, read_sweep

COMMANDS = all_commands()
OURS = [command for command in COMMANDS if command.words[0] == "flamingo" and "VERB" not in command.words]
PLACEHOLDER = re.compile(r"[A-Z]+|.*/NAME\.py")
EXPLAINED = (ROOT / "docs/inspect.md").read_text().split("```\n$ ")[1].split("\n```")[0]

# What other tests run: the last verb stands in a list or call of the file; an option begins a text anywhere in it.
RUN_ELSEWHERE = {
  "quickstart": "tests/launch/test_quickstart_command.py",
  "train": "tests/test_main_job.py",
  "train --reproduce": "tests/test_main_job.py",
  "train --replay": "tests/test_main_job.py",
  "train --rewind": "tests/launch/test_tutorial.py",
  "train --coordinator": "tests/test_main_job.py",
  "launch --on=local": "tests/launch/test_local.py",
  "launch --on=slurm": "tests/launch/test_slurm.py",
  "launch --on=gke": "tests/launch/test_gke.py",
  "launch --on=tpu-vm": "tests/launch/test_tpu_vm.py",
  "plan --parameters": "tests/launch/test_plan.py",
  "plan --topology": "tests/launch/test_plan.py",
  "plan --search": "tests/launch/test_plan.py",
  "generate": "tests/test_main_job.py",
  "demo": "tests/launch/test_demo.py",
  "evaluate --config": "tests/launch/test_evaluate.py",
  "evaluate --benchmark": "tests/launch/test_evaluate.py",
  "evaluate --control": "tests/launch/test_evaluate.py",
  "evaluate --compare": "tests/launch/test_comparison_page.py",
  "sweep": "tests/launch/test_sweep.py",
  "report": "tests/launch/test_report_many.py",
  "profile": "tests/launch/test_profile.py",
  "import": "tests/launch/test_import.py",
  "import --from=gguf": "tests/launch/test_import.py",
  "import --from=hf-lm": "tests/launch/test_import.py",
  "import --from=openflamingo": "tests/launch/test_import.py",
  "export --to": "tests/launch/test_export.py",
  "data features": "tests/launch/test_features.py",
  "data build-pages": "tests/launch/test_data_build.py",
  "data build-pairs": "tests/launch/test_data_build.py",
  "data build-videos": "tests/launch/test_documented_commands.py",
  "data train-tokenizer": "tests/data_pipelines/test_tokenizer_training.py",
  "data explain": "tests/launch/test_data_explain.py",
  "data check": "tests/launch/test_data_check.py",
  "data inspect": "tests/launch/test_data_inspect.py",
  "config show": "tests/launch/test_config_command.py",
  "config diff": "tests/launch/test_config_command.py",
  "config validate": "tests/launch/test_config_command.py",
}

NOT_RUN = {  # kinds that no test types, and what is tested instead
  "data miniature": "fetches a wheel and writes 43 MB; tests/data_pipelines/test_miniature.py reads one made there",
}


def parse(command: Command) -> argparse.Namespace:
  given, overrides = take_overrides(list(command.words[1:]))
  parser = make_parser() if command.whole else forgiving(make_parser())
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      options = parser.parse_args(given)
  except SystemExit as end:
    if end.code != 0:  # of --help
      pytest.fail(f"{command}\n{said.getvalue()}")
    return argparse.Namespace(verb="help")
  options.overrides = overrides
  return options


def config_file(path: str, command: Command, folder: pathlib.Path) -> str | None:
  """The config that a command names: of the tree, or what its page says it is. None: it stands for the reader's own."""
  written = files((ROOT / command.page).read_text()) if command.page.endswith(".md") else {}
  if path in written:
    file = folder / pathlib.PurePath(path).name
    file.write_text(written[path])
    return str(file)
  return None if PLACEHOLDER.fullmatch(path) else path


def check(options: argparse.Namespace, config: str | None) -> None:
  """What each verb checks before it opens data or models. Raises UserError."""
  if options.verb == "evaluate" and config:
    read_evaluation(load_config(config, options.overrides), config, options.benchmark)
  elif options.verb == "sweep" and config:
    sweep = read_sweep(config)
    if isinstance(sweep, TrialsConfig):
      make_trials(sweep, options.overrides, config)
  elif config:
    read_experiment(load_config(config, options.overrides), config)
  if options.verb == "train":
    check_train(options)
  if options.verb == "launch":
    checked(options)
  if options.verb == "data" and options.job.startswith("build-"):
    read_settings(options.job.removeprefix("build-"), options)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_is_understood_and_what_it_names_is_sound(command, tmp_path):
  options = parse(command)
  named = getattr(options, "config", None) or ""
  if options.verb == "config" and command.whole:
    named = options.path if options.job != "diff" else options.second
  config = config_file(named, command, tmp_path) if named.endswith(".py") or PLACEHOLDER.fullmatch(named) else None
  if command.whole:
    check(options, config)
  elif config:
    load_config(config, options.overrides)


def texts_of(path: pathlib.Path) -> list[str]:
  """Every text in a test; of f-strings, how they begin."""
  return [node.value for node in ast.walk(ast.parse(path.read_text())) if is_text(node)]


def is_text(node: ast.AST) -> bool:
  return isinstance(node, ast.Constant) and isinstance(node.value, str)


def typed_verbs(path: pathlib.Path) -> list[str]:
  """The texts of every list, tuple and call of a test that are no options, each joined by spaces."""
  nodes = list(ast.walk(ast.parse(path.read_text())))
  groups = [node.args if isinstance(node, ast.Call) else getattr(node, "elts", []) for node in nodes]
  return [" ".join(each.value for each in group if is_text(each) and each.value[:1] != "-") for group in groups]


def parts(kind: str) -> tuple[list[str], list[str]]:
  """(verbs, options) of a kind of command."""
  words = kind.split()
  return [word for word in words if word[0] != "-"], [word for word in words if word[0] == "-"]


@pytest.mark.parametrize("kind", RUN_ELSEWHERE)
def test_what_is_only_read_here_is_run_by_another_test(kind):
  path = ROOT / RUN_ELSEWHERE[kind]
  verbs, options = parts(kind)
  assert any(re.search(rf"\b{re.escape(verbs[-1])}\b", typed) for typed in typed_verbs(path)), (
    f"{path} types no {verbs[-1]}"
  )
  for option in options:
    assert any(text.startswith(option) for text in texts_of(path)), f"{path} has no {option}"


@pytest.mark.parametrize("command", [command for command in OURS if command.whole], ids=str)
def test_every_command_has_a_test_that_runs_its_kind(command):
  given = command.words[1:]
  kinds = [parts(kind) for kind in (*RUN_ELSEWHERE, *NOT_RUN)]
  assert any(
    list(given[: len(verbs)]) == verbs and all(any(word.startswith(option) for word in given) for option in options)
    for verbs, options in kinds
  )


def test_other_commands_name_what_there_is():
  """Targets of make, extras of pip, scripts and modules of python."""
  targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
  extras = re.findall(r'^extras\["(\w+)"\]|^  "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
  extras = {name for pair in extras for name in pair}
  for command in COMMANDS:
    program, *given = command.words
    if program == "make":
      assert set(given) <= set(targets), command
    if program == "pip":
      asked = re.findall(r"(?:flamingo_jax|\.)\[(.+?)\]", " ".join(given))
      assert {name for names in asked for name in names.split(",")} <= extras, command
    if program == "python" and given[0] == "-m":
      assert importlib.util.find_spec(given[1]), command
    elif program == "python":
      text = (ROOT / given[0]).read_text()
      assert all(f'"{word.split("=")[0]}"' in text for word in given if word.startswith("--")), command


def test_every_line_of_a_shell_block_begins_with_a_program_that_is_known_here():
  """So that none goes unread."""
  for path in PAGES:
    for block in blocks(path.read_text(), "sh"):
      for line in block.replace("\\\n", " ").splitlines():
        program = pathlib.PurePath(re.sub(r"^(\$ |[A-Z_]+=\S+ )*", "", line).split(" ")[0]).name
        assert not program or program.startswith("#") or program in OWN + OTHERS, f"{path.name}: {line}"


@pytest.mark.parametrize(
  ("name", "parser"), list(every_verb()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_verb_has_help_with_an_example_of_itself(name, parser):
  assert f"example: {name}" in parser.format_help().replace("\n", " ")


@pytest.fixture
def elsewhere(quickstart_data, tmp_path, monkeypatch) -> pathlib.Path:
  """A folder to type in: the quickstart's data are there, and nothing else."""
  (tmp_path / "data").mkdir()
  os.symlink(quickstart_data, tmp_path / "data" / "quickstart")
  monkeypatch.chdir(tmp_path)
  return tmp_path


RUN = (  # page, how the command begins, what is put behind it, what it then prints
  ("README.md", "launch --on=slurm", ("--config=configs/tiny.py",), "#SBATCH --nodes=4"),
  (
    "README.md",
    "plan --config=configs/flamingo_80b.py --parameters --json",
    (),
    '"vision encoder": {"trained": 0, "frozen": 430561380',
  ),
  ("docs/inspect.md", "data inspect", ("--stream=captions", "--rows=1"), "inspect.html"),
  ("docs/launch.md", "launch --on=local --processes=2", ("--dry-run",), "--processes=2"),
  ("docs/launch.md", "launch --on=gke --topology", ("--dry-run", "--config=configs/tiny.py"), "kind: JobSet"),
  ("docs/launch.md", "launch --on=tpu-vm", ("--dry-run", "--config=configs/tiny.py"), "gcloud compute tpus tpu-vm ssh"),
  ("flamingo config show --help", "config show", (), "total_steps: 100"),
  ("flamingo config validate --help", "config validate", (), "configs/tiny.py: whole."),
)


def documented(page: str, beginning: str) -> list[str]:
  """The one command of a page that begins so."""
  found = {each.words[1:] for each in OURS if each.page == page and each.whole}
  [words] = [words for words in found if " ".join(words).startswith(beginning)]
  return list(words)


@pytest.mark.parametrize(("page", "beginning", "more", "printed"), RUN)
def test_a_documented_command_does_what_it_should(elsewhere, capsys, page, beginning, more, printed):
  assert main([*documented(page, beginning), *more]) == 0, capsys.readouterr().err
  assert printed in capsys.readouterr().out


def test_a_record_is_explained_as_the_page_shows_it(elsewhere, capsys):
  assert main(documented("docs/inspect.md", "data explain")) == 0
  printed = iter(line.strip() for line in capsys.readouterr().out.splitlines())
  shown = [line.strip() for line in EXPLAINED.splitlines()[1:] if line.strip(" .")]
  assert len(shown) > 8
  for line in shown:  # in this order, with others between them
    assert line in printed, f"docs/inspect.md shows {line!r}"


def test_films_are_built_as_the_page_says(elsewhere):
  film(elsewhere / "FOLDER" / "film.mp4")
  rows = [dict(video="film.mp4", caption="red, then green"), dict(video="film.mp4", caption="green", start=1.0)]
  (elsewhere / "FOLDER" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  words = documented("docs/data.md", "data build-videos")
  assert main(["data", "build-videos", *words[2:], "--smallest-side=32", "--workers=1"]) == 0
  manifest = json.loads((elsewhere / "data/videos/train/manifest.json").read_text())
  assert manifest["records"] == 2
