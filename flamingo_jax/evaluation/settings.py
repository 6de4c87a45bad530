"""What is evaluated and how: benchmarks, numbers of shots, how these are chosen, what is taken away as a control."""

import dataclasses

from flamingo_jax.evaluation.tasks import SHOTS, TASKS

SELECTIONS = ("random", "fixed", "nearest")
SHUFFLED_IMAGES = "shuffled_images"
CONTROLS = ("image_blind", SHUFFLED_IMAGES, "shuffled_shots")
DEVELOPMENT = "development"  # the split that stands for the paper's development queries


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
  """One benchmark and how it is evaluated; without changes, as in the paper (section 4)."""

  folder: str  # of the data set, as docs/evaluation.md has it
  task: str = ""  # a name of TASKS; empty: the benchmark's own
  split: str = ""  # what is evaluated; empty: as in the paper; "development": the paper's development queries
  shots: tuple[int, ...] = SHOTS
  selection: str = "random"  # for each query; or "fixed": the same for all; or "nearest": RICES
  orders: int = 1  # of the shots, over which candidates' log-likelihoods are averaged; the paper's ensembles have 6
  support: int = 0  # examples that shots are chosen from, of each class where there are classes; 0: as in the paper
  queries: int = 0  # so many, drawn from the split; 0: all
  seeds: tuple[int, ...] = (0,)  # of shots and orders; each is a setting of its own
  beams: int = 3  # width of the search for an answer; 1: greedy
  length_penalty: float = 1.0
  new_tokens: int = 32  # of an answer, at most


@dataclasses.dataclass(frozen=True)
class Setting:
  """One column of a table of results: a benchmark under one number of shots, seed and control."""

  benchmark: str
  task: str
  shots: int
  selection: str
  orders: int
  seed: int
  control: str

  @property
  def name(self) -> str:
    """Names its files."""
    parts = [self.benchmark, str(self.shots), self.selection, f"seed{self.seed}"]
    parts += [f"orders{self.orders}"] * (self.orders > 1) + [self.control] * bool(self.control)
    return "-".join(parts)

  @property
  def draws_once(self) -> bool:
    """Whether the same shots, or at 0 shots the same texts, are drawn for all queries."""
    return self.selection == "fixed" or self.shots == 0

  @property
  def shares_shots(self) -> bool:
    """Whether all queries are asked after the same shots, which then are read once."""
    return self.draws_once and self.control not in (SHUFFLED_IMAGES, "shuffled_shots")


def task_name(name: str, config: BenchmarkConfig) -> str:
  return config.task or name


def settings_of(name: str, config: BenchmarkConfig, control: str) -> list[Setting]:
  """All settings of a benchmark, by seed and shots; at 0 shots one picture alone cannot change places."""
  how = (config.selection, config.orders)
  return [
    Setting(name, task_name(name, config), shots, *how, seed, control)
    for seed in config.seeds
    for shots in config.shots
    if shots or control != SHUFFLED_IMAGES
  ]


def check_benchmark(where: str, name: str, config: BenchmarkConfig) -> list[str]:
  """What is wrong with a benchmark's settings, one line a fault.

  Args:
    where: the path of the group of benchmarks in the config, for messages.
    name: of the benchmark.
    config: its settings.
  """
  here, task = f"{where}.{name}", TASKS.get(task_name(name, config))
  if task is None:
    asked = task_name(name, config)
    return [f"{here}.task: there is no benchmark {asked!r}; there are {', '.join(sorted(TASKS))}."]
  faults = []
  if not name.replace("_", "").isalnum():
    faults.append(f"{here}: the name becomes part of file names; use letters, digits and _.")
  splits = ("", DEVELOPMENT, *task.splits) if task.development_queries else ("", *task.splits)
  if config.split not in splits:
    faults.append(f"{here}.split is {config.split!r}; it is one of {', '.join(map(repr, splits))}.")
  if config.selection not in SELECTIONS:
    faults.append(f"{here}.selection is {config.selection!r}; it is one of {', '.join(SELECTIONS)}.")
  for field, values in (("shots", config.shots), ("seeds", config.seeds)):
    if not values or min(values) < 0 or len(set(values)) < len(values):
      faults.append(f"{here}.{field} is {values}; it is one or more different numbers, none below 0.")
  if config.shots and max(config.shots) > task.most_shots:
    faults.append(f"{here}.shots has {max(config.shots)}; {task_name(name, config)} takes at most {task.most_shots}.")
  if config.orders < 1 or (config.orders > 1 and not task.ranked):
    faults.append(f"{here}.orders is {config.orders}; it is 1, or more where candidates are ranked.")
  for field in ("support", "queries"):
    if getattr(config, field) < 0:
      faults.append(f"{here}.{field} is {getattr(config, field)}; it is at least 1, or 0.")
  for field in ("beams", "new_tokens"):
    if getattr(config, field) < 1:
      faults.append(f"{here}.{field} is {getattr(config, field)}; it is at least 1.")
  return faults


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
  """How benchmarks are evaluated, whichever they are."""

  batch_size: int = 8  # queries, over all devices
  context: int = 2048  # tokens that the language model was made for
  frames: int = 30  # of a film, at most; more than the resampler has embeddings for interpolate these
  frames_per_second: float = 3.0  # 0: spread evenly over the clip
  media_memory: float = 8.0  # GiB on each host for what was seen
  wordnet: str = ""  # folder of WordNet's database, which only WUPS needs


def check_few_shot(
  where: str, config: FewShotConfig, benchmarks: dict[str, BenchmarkConfig], control: str
) -> list[str]:
  """What is wrong with the settings of an evaluation, one line a fault.

  Args:
    where: the path of this group in the config, with a dot behind, or empty; for messages.
    config: what all benchmarks share.
    benchmarks: by name.
    control: of CONTROLS, or empty.
  """
  faults = [
    f"{where}{field} is {getattr(config, field)}; it is at least 1."
    for field in ("batch_size", "context", "frames")
    if getattr(config, field) < 1
  ]
  for field in ("frames_per_second", "media_memory"):
    if not 0 <= getattr(config, field) < float("inf"):
      faults.append(f"{where}{field} is {getattr(config, field)}; it is a number from 0 on.")
  if control not in ("", *CONTROLS):
    faults.append(f"control is {control!r}; it is one of {', '.join(CONTROLS)}, or empty.")
  for name, benchmark in benchmarks.items():
    faults += check_benchmark(f"{where}benchmarks", name, benchmark)
    task = TASKS.get(task_name(name, benchmark))
    if task and task.needs_words and not config.wordnet:
      faults.append(
        f"{where}wordnet is empty, but {task.metric} of benchmarks.{name} needs WordNet's database: name its folder, "
        "such as /usr/share/wordnet of Debian's package wordnet-base."
      )
  return faults
