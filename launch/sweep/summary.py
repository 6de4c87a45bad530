"""What a sweep leaves: outcomes.json, winner.py, sweep.html, and a table for the terminal."""

import json
import pathlib
import pprint
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from data_pipelines.build.files import write_whole
from flamingo_jax.credentials import redacted_config
from launch.report.templates import template, write_page
from launch.sweep import outcomes
from launch.sweep.chart import parallel_coordinates
from launch.sweep.outcomes import Result, Setting, importances, ranked, settings_of
from launch.sweep.settings import SweepConfig

SIGNS = {"min": "lowest", "max": "highest"}


def summarize(folder: pathlib.Path, path: str, config: SweepConfig, results: Sequence[Result]) -> None:
  """Writes the files of a sweep's folder from how its trials stand; each is replaced as a whole."""
  settings = ranked(settings_of(results), config.best)
  shares = importances(results, config.best)
  text = json.dumps(described(path, config, settings, shares), indent=2)
  write_whole(folder / "outcomes.json", lambda file: file.write(text.encode()))
  if settings and settings[0].mean is not None:
    winner = winning_config(path, config, settings[0])
    write_whole(folder / "winner.py", lambda file: file.write(winner.encode()))
  page = template("sweep.html.j2").render(
    title=path,
    outcome=config.outcome,
    sign=SIGNS[config.best],
    fields=fields_of_settings(settings),
    settings=settings,
    also=config.also,
    counts={state: number for state in outcomes.STATES if (number := sum(r.state == state for r in results))},
    failed=[result for result in results if result.state == outcomes.FAILED],
    importances=shares,
    chart=parallel_coordinates(results, config.outcome, config.best),
    media_colors=(),
  )
  write_page(folder / "sweep.html", page)


def fields_of_settings(settings: Sequence[Setting]) -> list[str]:
  return list(settings[0].changes) if settings else []


def described(path: str, config: SweepConfig, settings: Sequence[Setting], shares: dict[str, float]) -> dict:
  """All of a sweep as JSON has it."""
  return dict(
    sweep=path,
    outcome=config.outcome,
    best=config.best,
    importances=shares,
    settings=[
      dict(
        changes=setting.changes,
        mean=setting.mean,
        half_interval_95=setting.interval,
        also={field: setting.summary(field) for field in config.also},
        trials=[
          dict(name=each.trial.name, changes=each.trial.changes, state=each.state, steps=each.steps)
          | dict(outcome=each.outcome, also=each.others, why=each.why)
          for each in setting.results
        ],
      )
      for setting in settings
    ],
  )


def winning_config(path: str, config: SweepConfig, best: Setting) -> str:
  """A config file with every field of the best setting's best trial."""
  sign = 1 if config.best == "min" else -1
  done = [each for each in best.results if each.state == outcomes.DONE and each.outcome is not None]
  trial = min(done, key=lambda each: sign * each.outcome).trial
  failed = f" {best.failed} of the {len(best.results)} trials of its setting failed." if best.failed else ""
  lines = pprint.pformat(redacted_config(trial.raw), width=116, sort_dicts=False).replace("\n", "\n  ")
  return (
    f'"""The best of {path}: {config.outcome} {best.mean:.5g}, of trial {trial.name}.{failed}"""\n\n'
    f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict(\n  {lines}\n  )\n"
  )


def table(config: SweepConfig, results: Sequence[Result]) -> str:
  """The settings, best first, as text."""
  settings = ranked(settings_of(results), config.best)
  fields = fields_of_settings(settings)
  shown = Table(*(field.removeprefix("model.") for field in fields), config.outcome, "95%", "trials")
  for setting in settings:
    mean = "" if setting.mean is None else f"{setting.mean:.5g}"
    interval = "" if setting.interval is None else f"± {setting.interval:.2g}"
    shown.add_row(*(str(setting.changes[field]) for field in fields), mean, interval, states(setting))
  console = Console(width=max(100, Console().width), markup=False, emoji=False)  # values are what they are
  with console.capture() as text:
    console.print(shown)
  return text.get().rstrip()


def states(setting: Setting) -> str:
  """How many trials are in which state."""
  counts = {state: sum(each.state == state for each in setting.results) for state in outcomes.STATES}
  return ", ".join(f"{number} {state}" for state, number in counts.items() if number)
