"""What can be said to the command `flamingo`: its verbs and their options. Nothing slow is imported here."""

import argparse

from flamingo_jax import __version__
from launch import launchers
from launch.data_build import KINDS, SUMMARIES, add_options
from launch.numbers import natural, positive, seconds

# What `flamingo import` reads; named here because the readers themselves are slow to import.
FORMATS = ("gguf", "hf-lm", "hf-clip", "hf-siglip", "open-clip", "timm-nfnet", "openflamingo", "idefics")

EXPORT_FORMATS = ("openflamingo", "safetensors", "orbax", "stablehlo")
FEATURE_DTYPES = ("bfloat16", "float32")
CONTROLS = ("image_blind", "shuffled_images", "shuffled_shots")  # of flamingo_jax.evaluation.settings
ALLOW_CHANGED_HELP = "what may differ from the run's last start: config fields, frozen or data, by comma"
PEER_TIMEOUT = 100.0
PEER_TIMEOUT_HELP = "seconds after which a process of the job that is not heard of is lost (%(default)s)"
NEAR_BITS = "of 64, by which the hash of a like picture may differ (%(default)s)"


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="flamingo", description="Flamingo-style visual language models in JAX.")
  parser.add_argument("--version", action="version", version=f"flamingo_jax {__version__}")
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  quickstart = add(
    verbs, "quickstart", "real data, a vision encoder and a Flamingo trained on it, and a report",
    "flamingo quickstart --data=data/quickstart --workdir=runs/quickstart",
  )  # fmt: skip
  quickstart.add_argument("--data", default="data/quickstart", help="where downloads and streams go (%(default)s)")
  quickstart.add_argument("--workdir", default="runs/quickstart", help="where both runs go (%(default)s)")
  quickstart.add_argument("--prepare-only", action="store_true", help="stop when the data is ready")

  train = add(
    verbs, "train", "train what a config describes, or go on with it",
    "flamingo train --config=configs/quickstart.py --workdir=runs/mine --config.optimizer.learning_rate=5e-4",
  )  # fmt: skip
  train.add_argument("--config", help="a Python file with get_config()")
  train.add_argument("--workdir", help="a new folder, or that of the run to go on with")
  train.add_argument("--allow-changed", default="", metavar="NAMES", help=ALLOW_CHANGED_HELP)
  train.add_argument("--rewind", type=int, metavar="STEP", help="go back to the checkpoint of this step first")
  train.add_argument("--skip-steps", metavar="A:B", help="with --rewind: leave the batches A to B - 1 out")
  train.add_argument("--reproduce", metavar="RUN", help="train what this work directory was made with, anew")
  train.add_argument("--replay", metavar="BUNDLE", help="run the step of a crash bundle again, and nothing else")
  add_job(train)

  add_config(verbs)

  launch = add(
    verbs, "launch", "train in processes that are started again whenever they die, until the run is done",
    "flamingo launch --on=local --processes=2 --config=configs/tiny.py --workdir=runs/mine",
  )  # fmt: skip
  launch.add_argument("--config", required=True, help="a Python file with get_config()")
  launch.add_argument("--workdir", required=True, help="as for train; logs go to WORKDIR.logs")
  launch.add_argument("--allow-changed", default="", metavar="NAMES", help=ALLOW_CHANGED_HELP)
  launch.add_argument("--peer-timeout", type=seconds, default=PEER_TIMEOUT, help=PEER_TIMEOUT_HELP)
  launchers.add_options(launch)

  plan = add(
    verbs, "plan", "say what a config will need; reads the config alone",
    "flamingo plan --config=configs/flamingo_80b.py --topology=v4:8x12x16",
  )  # fmt: skip
  plan.add_argument("--config", required=True, help="a Python file with get_config()")
  what = plan.add_mutually_exclusive_group(required=True)
  what.add_argument("--parameters", action="store_true", help="how many there are, part by part")
  what.add_argument("--topology", help="compile the step for a slice of TPUs, such as v5e:8x8; no TPU is needed")
  plan.add_argument(
    "--search", type=positive, nargs="?", const=8, metavar="N", help="rank N settings nearby (%(const)s)"
  )
  plan.add_argument("--steps", type=positive, help="whose days are counted (the config's total_steps)")
  plan.add_argument("--json", action="store_true", help="print one JSON object with the exact numbers")

  generate = add(
    verbs, "generate", "continue a prompt with a trained model",
    'flamingo generate --workdir=runs/quickstart/flamingo --prompt="<image>Output:" --image=a.png',
  )  # fmt: skip
  generate.add_argument("--workdir", required=True, help="of a trained Flamingo")
  generate.add_argument("--prompt", required=True, help="text, with <image> where a medium stands")
  generate.add_argument("--image", action="append", default=[], help="a picture or video; once for each <image>")
  generate.add_argument("--new-tokens", type=int, default=32, help="how many to write at most (%(default)s)")
  generate.add_argument("--temperature", type=float, default=0.0, help="of draws; 0: the likeliest token (%(default)s)")
  generate.add_argument("--top-k", type=int, default=0, help="draw from so many of the likeliest tokens; 0: from all")
  generate.add_argument("--top-p", type=float, default=1.0, help="draw from the fewest with this share (%(default)s)")
  generate.add_argument("--seed", type=int, default=0, help="of draws (%(default)s)")
  generate.add_argument("--beams", type=int, default=1, help="width of a beam search; 1: none (%(default)s)")
  generate.add_argument("--length-penalty", type=float, default=1.0, help="of a beam search (%(default)s)")

  add_demo(verbs)

  add_evaluate(verbs)
  add_sweep(verbs)

  report = add(
    verbs, "report", "write the report of a run, or of several beside each other: one HTML page",
    "flamingo report runs/one runs/two --out=runs/compared.html",
  )  # fmt: skip
  report.add_argument("workdir", nargs="+", help="of a run")
  report.add_argument("--out", help="the file to write; needed for several runs (WORKDIR/report.html)")

  profile = add(
    verbs, "profile", "trace the next steps of a run that goes on",
    "flamingo profile runs/mine --steps=5",
  )  # fmt: skip
  profile.add_argument("workdir", help="of the run")
  profile.add_argument("--steps", type=positive, default=5, help="to trace (%(default)s)")
  profile.add_argument("--patience", type=seconds, default=300.0, help="seconds without a step to wait (%(default)s)")

  importer = add(
    verbs, "import", "read a foreign checkpoint into a model folder",
    "flamingo import --from=gguf --path=model.gguf --out=models/smollm2",
  )  # fmt: skip
  importer.add_argument("--from", dest="format", required=True, choices=FORMATS, help="whose checkpoint it is")
  importer.add_argument("--path", required=True, help="a file, or a folder as it was published")
  importer.add_argument("--language", help="for openflamingo: the language model it was built on, a folder")
  importer.add_argument("--vision", help="for openflamingo: the open_clip vision encoder it was built on, a folder")
  importer.add_argument("--out", required=True, help="the folder to write")

  exporter = add(
    verbs, "export", "write a trained model as another program reads it, with a model card",
    "flamingo export --workdir=runs/quickstart/flamingo --to=stablehlo --out=exports/quickstart",
  )  # fmt: skip
  exporter.add_argument("--workdir", required=True, help="of a trained Flamingo; its newest checkpoint is taken")
  exporter.add_argument("--to", dest="format", required=True, choices=EXPORT_FORMATS, help="what to write")
  exporter.add_argument("--out", required=True, help="the folder to write")

  data = add(
    verbs, "data", "prepare the data of a run",
    "flamingo data features --config=configs/flamingo_3b.py --stream=captions --out=data/features/captions",
  )  # fmt: skip
  jobs = data.add_subparsers(dest="job", required=True, metavar="JOB")
  features = add(
    jobs, "features", "run the frozen vision encoder once over all media of a stream",
    "flamingo data features --config=configs/flamingo_3b.py --stream=captions --out=data/features/captions",
  )  # fmt: skip
  features.add_argument("--config", required=True, help="a Python file with get_config()")
  features.add_argument("--stream", required=True, help="one of the config's")
  features.add_argument("--out", required=True, help="the folder to write")
  features.add_argument("--dtype", default="bfloat16", choices=FEATURE_DTYPES, help="of the features (%(default)s)")
  for kind in KINDS:
    example = f"flamingo data build-{kind} --input=FOLDER --output=data/{kind} --name=mine --licence=CC-BY-4.0"
    builder = add(jobs, f"build-{kind}", SUMMARIES[kind], example)
    add_options(builder, kind)
  learn = add(
    jobs, "train-tokenizer", "learn a tokenizer.json from the text of shards or of plain files",
    "flamingo data train-tokenizer --input=data/mine --vocabulary=32000 --out=models/tokenizer",
  )  # fmt: skip
  learn.add_argument("--input", required=True, help="a folder of shards, or of .txt files, or one such file")
  learn.add_argument("--vocabulary", required=True, type=positive, help="tokens, bytes and three marks among them")
  learn.add_argument("--out", required=True, help="the folder to write tokenizer.json into")
  small = add(
    jobs, "miniature", "write the digits and the text of configs/miniature",
    "flamingo data miniature --out=data/miniature",
  )  # fmt: skip
  small.add_argument("--out", default="data/miniature", help="the folder to write (%(default)s)")
  add_inspection(jobs)
  return parser


def add_config(verbs) -> None:
  """What looks at configs."""
  config = add(
    verbs, "config", "look at configs: all of one, what differs between two, whether one is whole",
    "flamingo config diff runs/mine configs/quickstart.py --config.total_steps=100",
  )  # fmt: skip
  jobs = config.add_subparsers(dest="job", required=True, metavar="JOB")
  of_what = "a Python file with get_config(), or the work directory of a run"
  show = add(jobs, "show", "print every field", "flamingo config show configs/tiny.py --config.total_steps=100")
  show.add_argument("path", help=of_what)
  show.add_argument("--json", action="store_true", help="as JSON; YAML otherwise")
  diff = add(jobs, "diff", "print the fields in which two differ", "flamingo config diff runs/one runs/two")
  diff.add_argument("first", help=of_what)
  diff.add_argument("second", help="another; --config.field=value changes this one")
  diff.add_argument("--json", action="store_true", help="print one JSON object, field -> [first, second]")
  validate = add(jobs, "validate", "say all that is wrong with one", "flamingo config validate configs/tiny.py")
  validate.add_argument("path", help=of_what)


def add_demo(verbs) -> None:
  """A page to try a model on (docs/demo.md)."""
  demo = add(
    verbs, "demo", "serve a page of this machine, to build prompts and watch a trained model write",
    "flamingo demo --checkpoint=runs/quickstart/flamingo",
  )  # fmt: skip
  demo.add_argument("--checkpoint", required=True, help="the work directory of a run, or a folder of `flamingo import`")
  demo.add_argument("--host", default="127.0.0.1", help="the address to listen at; others may reach it (%(default)s)")
  demo.add_argument("--port", type=positive, default=7860, help="to listen at (%(default)s)")


def add_sweep(verbs) -> None:
  """Many runs of one config (docs/sweep.md)."""
  sweep = add(
    verbs, "sweep", "run the trials of a sweep file, several at a time, and set their outcomes side by side",
    "flamingo sweep --config=configs/sweeps/tiny.py --workdir=runs/sweep --parallel=2 -- --on=local --restarts=1",
  )  # fmt: skip
  sweep.add_argument("--config", required=True, help="a Python file with get_sweep()")
  sweep.add_argument("--workdir", required=True, help="a new folder, or that of the sweep to go on with")
  sweep.add_argument("--parallel", type=positive, default=1, help="trials at a time (%(default)s)")
  sweep.add_argument("--retries", type=natural, default=1, help="launches more of a trial that fails (%(default)s)")
  sweep.add_argument("launcher", nargs="*", help="after --: what `flamingo launch` is told of each trial (--on=local)")


def add_evaluate(verbs) -> None:
  """Few-shot benchmarks (docs/evaluation.md)."""
  evaluate = add(
    verbs, "evaluate", "put few-shot benchmarks to a trained model, or set two evaluations side by side",
    "flamingo evaluate --config=configs/evaluation/quickstart.py --checkpoint=runs/quickstart/flamingo",
  )  # fmt: skip
  evaluate.add_argument("--config", help="a Python file with get_config(): the benchmarks")
  evaluate.add_argument("--checkpoint", help="the work directory of a run, or the folder of an imported Flamingo")
  evaluate.add_argument("--out", help="predictions, scores, report (CHECKPOINT/evaluations/ and the config's name)")
  evaluate.add_argument("--benchmark", action="append", default=[], help="one of the config's; may be repeated (all)")
  evaluate.add_argument("--control", default="", choices=CONTROLS, help="take something away, to see what it is worth")
  evaluate.add_argument(
    "--compare", nargs=2, metavar=("A", "B"), help="two folders of evaluations; --out: the page (comparison.html)"
  )
  add_job(evaluate)


def add_job(verb) -> None:
  """What a process of several needs to know."""
  verb.add_argument("--coordinator", help="HOST:PORT of a job's first process; or auto, where the cluster tells")
  verb.add_argument("--processes", type=int, help="of the job; each sees its own devices")
  verb.add_argument("--process", type=int, help="which of them this is, from 0")
  verb.add_argument("--peer-timeout", type=seconds, default=PEER_TIMEOUT, help=PEER_TIMEOUT_HELP)


def add_inspection(jobs) -> None:
  """What looks at data (docs/inspect.md)."""
  explain = add(
    jobs, "explain", "print what a stream makes of a record, token by token",
    "flamingo data explain data/quickstart/streams/pages/train/pages-00000-of-00002.array_record:17 "
    "--config=configs/quickstart.py",
  )  # fmt: skip
  explain.add_argument("record", metavar="SHARD:NUMBER", help="a file and the record's number, as in skipped.jsonl")
  explain.add_argument("--config", required=True, help="a Python file with get_config()")
  explain.add_argument("--stream", help="one of the config's; needed where several read the shard")
  explain.add_argument("--step", type=int, help="a training step that reads the record: under its draws")
  explain.add_argument("--start", type=float, default=0.0, help="where a page's window starts, 0 to 1 (%(default)s)")
  explain.add_argument("--json", action="store_true", help="print one JSON object")

  check = add(
    jobs, "check", "read whole sets of records and say what would hurt a run",
    "flamingo data check --config=configs/quickstart.py --evaluation-images=data/evaluation",
  )  # fmt: skip
  check.add_argument("folder", nargs="?", help="of shards, or of such folders; or give --config")
  check.add_argument("--config", help="a Python file with get_config(): its streams, as a run reads them")
  check.add_argument("--stream", action="append", default=[], help="one of the config's; may be repeated (all)")
  check.add_argument("--evaluation-images", help="a folder of pictures that the data must not show")
  check.add_argument("--near-bits", type=int, default=4, choices=range(0, 17), metavar="BITS", help=NEAR_BITS)
  check.add_argument("--tolerate", type=float, help="the share at fault that does not hurt (maximum_skipped)")
  check.add_argument("--show", type=int, default=5, help="how many of each finding are named (%(default)s)")
  check.add_argument("--json", action="store_true", help="print one JSON object")

  inspect = add(
    jobs, "inspect", "write a page of what the model will see: text, media, and which sees which",
    "flamingo data inspect --config=configs/quickstart.py --rows=6 --output=inspect.html",
  )  # fmt: skip
  inspect.add_argument("--config", required=True, help="a Python file with get_config()")
  inspect.add_argument("--stream", action="append", default=[], help="one of the config's; may be repeated (all)")
  inspect.add_argument("--step", type=int, default=1, help="whose batches are shown, as in metrics.jsonl (%(default)s)")
  inspect.add_argument("--rows", type=int, default=4, help="of each stream (%(default)s)")
  inspect.add_argument("--output", default="inspect.html", help="the file to write (%(default)s)")


def add(verbs, name: str, summary: str, example: str) -> argparse.ArgumentParser:
  return verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
