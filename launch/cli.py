"""The command `flamingo`. Each verb imports what it needs when it runs, so that `--help` is quick."""

import argparse
import functools
import sys
import time
import traceback

from absl import logging

from flamingo_jax import __version__
from flamingo_jax.credentials import redacted
from flamingo_jax.errors import DONE, PEER_LOST, PREEMPTED, USER_FAULT, PeerLost, Preempted, UserError
from launch.data_build import KINDS, SUMMARIES, add_options, build_data, positive
from launch.memory import use_huge_pages

BEGAN = time.perf_counter()  # nearly when the process did
CRASHED, INTERRUPTED = 1, 130  # as Python and shells have it
TRAINING = ("train", "quickstart")

# What `flamingo import` reads; named here because the readers themselves are slow to import.
FORMATS = ("gguf", "hf-lm", "hf-clip", "hf-siglip", "open-clip", "timm-nfnet", "openflamingo", "idefics")

EXPORT_FORMATS = ("openflamingo", "safetensors", "orbax", "stablehlo")
FEATURE_DTYPES = ("bfloat16", "float32")
ALLOW_CHANGED_HELP = "what may differ from the run's last start: config fields, frozen or data, by comma"
PEER_TIMEOUT = 100.0
PEER_TIMEOUT_HELP = "seconds after which a process of the job that is not heard of is lost (%(default)s)"
NEAR_BITS = "of 64, by which the hash of a like picture may differ (%(default)s)"


def main(arguments: list[str] | None = None) -> int:
  """Runs one verb; what the user can mend is printed as one message, without a stack trace."""
  given, overrides = take_overrides(sys.argv[1:] if arguments is None else arguments)
  options = make_parser().parse_args(given)
  options.overrides = overrides
  if arguments is None and options.verb in TRAINING:
    use_huge_pages()
  logging.set_verbosity(logging.ERROR)  # Orbax and TensorBoard warn of what is meant
  code = exit_code(options)
  if code not in (DONE, PREEMPTED) and "jax" in sys.modules:
    from launch.devices import leave_job

    leave_job(code)
  return code


def exit_code(options) -> int:
  """Runs the verb; says what it ended with in one line, unless that is an error of our own."""
  try:
    return options.run(options) or DONE
  except UserError as error:
    code, message = USER_FAULT, str(error)
  except Preempted as error:
    code, message = PREEMPTED, str(error)
  except PeerLost as error:
    code, message = PEER_LOST, str(error)
  except KeyboardInterrupt:
    code, message = INTERRUPTED, "interrupted; run the same command again to continue."
  except Exception:
    print(redacted(traceback.format_exc()), file=sys.stderr, end="")
    return CRASHED
  print(f"flamingo {options.verb}: {redacted(message)}", file=sys.stderr)
  return code


def take_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
  """Separates `--config.field=value` and `--config.field value` from the other arguments."""
  rest, overrides = [], {}
  remaining = iter(arguments)
  for argument in remaining:
    if not argument.startswith("--config."):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix("--config.").partition("=")
    overrides[name] = value if equals else next(remaining, "")
  return rest, overrides


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="flamingo", description="Flamingo-style visual language models in JAX.")
  parser.add_argument("--version", action="version", version=f"flamingo_jax {__version__}")
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  quickstart = add(
    verbs, run_quickstart, "quickstart", "real data, a vision encoder and a Flamingo trained on it, and a report",
    "flamingo quickstart --data=data/quickstart --workdir=runs/quickstart",
  )  # fmt: skip
  quickstart.add_argument("--data", default="data/quickstart", help="where downloads and streams go (%(default)s)")
  quickstart.add_argument("--workdir", default="runs/quickstart", help="where both runs go (%(default)s)")
  quickstart.add_argument("--prepare-only", action="store_true", help="stop when the data is ready")

  train = add(
    verbs, run_train, "train", "train what a config describes, or go on with it",
    "flamingo train --config=configs/quickstart.py --workdir=runs/mine --config.optimizer.learning_rate=5e-4",
  )  # fmt: skip
  train.add_argument("--config", help="a Python file with get_config()")
  train.add_argument("--workdir", help="a new folder, or that of the run to go on with")
  train.add_argument("--allow-changed", default="", metavar="NAMES", help=ALLOW_CHANGED_HELP)
  train.add_argument("--rewind", type=int, metavar="STEP", help="go back to the checkpoint of this step first")
  train.add_argument("--skip-steps", metavar="A:B", help="with --rewind: leave the batches A to B - 1 out")
  train.add_argument("--replay", metavar="BUNDLE", help="run the step of a crash bundle again, and nothing else")
  train.add_argument("--coordinator", help="HOST:PORT of a job's first process; or auto, where the cluster tells")
  train.add_argument("--processes", type=int, help="of the job; each sees its own devices")
  train.add_argument("--process", type=int, help="which of them this is, from 0")
  train.add_argument("--peer-timeout", type=float, default=PEER_TIMEOUT, help=PEER_TIMEOUT_HELP)

  launch = add(
    verbs, run_launch, "launch", "train in processes that are started again whenever they die, until the run is done",
    "flamingo launch --on=local --processes=2 --config=configs/tiny.py --workdir=runs/mine",
  )  # fmt: skip
  launch.add_argument("--on", required=True, choices=("local",), help="where the processes run")
  launch.add_argument("--config", required=True, help="a Python file with get_config()")
  launch.add_argument("--workdir", required=True, help="as for train; logs go to WORKDIR.logs")
  launch.add_argument("--allow-changed", default="", metavar="NAMES", help=ALLOW_CHANGED_HELP)
  launch.add_argument("--processes", type=positive, default=1, help="of the job (%(default)s)")
  launch.add_argument("--devices", type=positive, help="virtual CPU devices of each process (those of the machine)")
  launch.add_argument("--restarts", type=int, default=5, help="in a row without a new step (%(default)s)")
  launch.add_argument("--grace", type=float, default=30.0, help="seconds from asking to end to killing (%(default)s)")
  launch.add_argument("--peer-timeout", type=float, default=PEER_TIMEOUT, help=PEER_TIMEOUT_HELP)

  plan = add(
    verbs, run_plan, "plan", "say what a config will need; reads the config alone",
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
    verbs, run_generate, "generate", "continue a prompt with a trained model",
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

  report = add(
    verbs, run_report, "report", "write a run's report, one HTML page",
    "flamingo report runs/quickstart/flamingo",
  )  # fmt: skip
  report.add_argument("workdir", help="of a run")

  importer = add(
    verbs, run_import, "import", "read a foreign checkpoint into a model folder",
    "flamingo import --from=gguf --path=model.gguf --out=models/smollm2",
  )  # fmt: skip
  importer.add_argument("--from", dest="format", required=True, choices=FORMATS, help="whose checkpoint it is")
  importer.add_argument("--path", required=True, help="a file, or a folder as it was published")
  importer.add_argument("--language", help="for openflamingo: the language model it was built on, a folder")
  importer.add_argument("--vision", help="for openflamingo: the open_clip vision encoder it was built on, a folder")
  importer.add_argument("--out", required=True, help="the folder to write")

  exporter = add(
    verbs, run_export, "export", "write a trained model as another program reads it, with a model card",
    "flamingo export --workdir=runs/quickstart/flamingo --to=stablehlo --out=exports/quickstart",
  )  # fmt: skip
  exporter.add_argument("--workdir", required=True, help="of a trained Flamingo; its newest checkpoint is taken")
  exporter.add_argument("--to", dest="format", required=True, choices=EXPORT_FORMATS, help="what to write")
  exporter.add_argument("--out", required=True, help="the folder to write")

  data = add(
    verbs, None, "data", "prepare the data of a run",
    "flamingo data features --config=configs/flamingo_3b.py --stream=captions --out=data/features/captions",
  )  # fmt: skip
  jobs = data.add_subparsers(dest="job", required=True, metavar="JOB")
  features = add(
    jobs, run_data_features, "features", "run the frozen vision encoder once over all media of a stream",
    "flamingo data features --config=configs/flamingo_3b.py --stream=captions --out=data/features/captions",
  )  # fmt: skip
  features.add_argument("--config", required=True, help="a Python file with get_config()")
  features.add_argument("--stream", required=True, help="one of the config's")
  features.add_argument("--out", required=True, help="the folder to write")
  features.add_argument("--dtype", default="bfloat16", choices=FEATURE_DTYPES, help="of the features (%(default)s)")
  for kind in KINDS:
    example = f"flamingo data build-{kind} --input=FOLDER --output=data/{kind} --name=mine --licence=CC-BY-4.0"
    builder = add(jobs, functools.partial(build_data, kind), f"build-{kind}", SUMMARIES[kind], example)
    add_options(builder, kind)
  add_inspection(jobs)
  return parser


def add_inspection(jobs) -> None:
  """What looks at data (docs/inspect.md)."""
  explain = add(
    jobs, run_data_explain, "explain", "print what a stream makes of a record, token by token",
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
    jobs, run_data_check, "check", "read whole sets of records and say what would hurt a run",
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
    jobs, run_data_inspect, "inspect", "write a page of what the model will see: text, media, and which sees which",
    "flamingo data inspect --config=configs/quickstart.py --rows=6 --output=inspect.html",
  )  # fmt: skip
  inspect.add_argument("--config", required=True, help="a Python file with get_config()")
  inspect.add_argument("--stream", action="append", default=[], help="one of the config's; may be repeated (all)")
  inspect.add_argument("--step", type=int, default=1, help="whose batches are shown, as in metrics.jsonl (%(default)s)")
  inspect.add_argument("--rows", type=int, default=4, help="of each stream (%(default)s)")
  inspect.add_argument("--output", default="inspect.html", help="the file to write (%(default)s)")


def add(verbs, run, name: str, summary: str, example: str) -> argparse.ArgumentParser:
  verb = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
  verb.set_defaults(run=run)
  return verb


def run_quickstart(options) -> None:
  from launch.devices import keep_compiled
  from launch.quickstart import quickstart

  keep_compiled()
  quickstart(options.data, options.workdir, options.overrides, prepare_only=options.prepare_only)


def run_train(options) -> None:
  from launch.devices import joined, keep_compiled
  from launch.replay import replay
  from launch.train import read_resume, train_config

  if not options.replay and not (options.config and options.workdir):
    raise UserError("--config and --workdir are both needed; or --replay alone.")
  with joined(options.coordinator, options.processes, options.process, options.peer_timeout):
    keep_compiled()
    if options.replay:
      replay(options.replay, options.overrides)
    else:
      resume = read_resume(options.allow_changed, options.rewind, options.skip_steps, BEGAN)
      train_config(options.config, options.overrides, options.workdir, resume)


def run_launch(options) -> int:
  from launch.local import launch_local

  return launch_local(
    options.config,
    options.workdir,
    options.overrides,
    allow_changed=options.allow_changed,
    processes=options.processes,
    devices=options.devices,
    peer_timeout=options.peer_timeout,
    restarts=options.restarts,
    grace=options.grace,
  )


def run_plan(options) -> None:
  if options.parameters:
    if options.search or options.steps:
      raise UserError("--parameters: --search and --steps go with --topology.")
    from launch.planning import plan_parameters

    plan_parameters(options.config, options.overrides, as_json=options.json)
    return
  from launch.plan_step import plan_search, plan_step

  asked = (options.config, options.overrides, options.topology, options.steps)
  if options.search:
    plan_search(*asked, options.search, as_json=options.json)
  else:
    plan_step(*asked, as_json=options.json)


def run_generate(options) -> None:
  from launch.devices import keep_compiled
  from launch.generate import continue_prompt, writing

  keep_compiled()
  how = writing(options.temperature, options.top_k, options.top_p, options.beams, options.length_penalty)
  print(continue_prompt(options.workdir, options.prompt, options.image, options.new_tokens, how, options.seed))


def run_report(options) -> None:
  from launch.devices import keep_compiled
  from launch.reporting import write_report

  keep_compiled()
  print(write_report(options.workdir))


def run_import(options) -> None:
  from launch.importing import import_checkpoint

  print(import_checkpoint(options.format, options.path, options.out, language=options.language, vision=options.vision))


def run_export(options) -> None:
  from launch.exporting import export_model

  print(export_model(options.workdir, options.format, options.out))


def run_data_features(options) -> None:
  from launch.features import write_features

  print(write_features(options.config, options.overrides, options.stream, options.out, options.dtype))


def run_data_explain(options) -> None:
  from launch.data_explain import explain_record

  record, config, stream = options.record, options.config, options.stream
  explain_record(record, config, options.overrides, stream, options.step, options.start, as_json=options.json)


def run_data_check(options) -> None:
  from launch.data_check import check_data

  check_data(
    options.folder,
    options.config,
    options.overrides,
    options.stream,
    evaluation_images=options.evaluation_images,
    near_bits=options.near_bits,
    tolerate=options.tolerate,
    most=options.show,
    as_json=options.json,
  )


def run_data_inspect(options) -> None:
  from launch.data_inspect import inspect_data

  config, rows, output = options.config, options.rows, options.output
  print(inspect_data(config, options.overrides, options.stream, step=options.step, rows=rows, output=output))


if __name__ == "__main__":
  sys.exit(main())
