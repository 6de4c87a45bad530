"""The command `flamingo`. Each verb imports what it needs when it runs, so that `--help` is quick."""

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable

from absl import logging

from flamingo_jax.credentials import redacted
from flamingo_jax.errors import DONE, PEER_LOST, PREEMPTED, USER_FAULT, PeerLost, Preempted, UserError
from flamingo_jax.memory import use_huge_pages
from launch.arguments import make_parser
from launch.data_build import KINDS, build_data
from launch.extras import what_brings

BEGAN = time.perf_counter()  # nearly when the process did
CRASHED, INTERRUPTED = 1, 130  # as Python and shells have it
TRAINING = ("train", "quickstart")
CONFIGURED = ("quickstart", "train", "config", "launch", "sweep", "plan", "evaluate", "data")  # by --config.field=value


def main(arguments: list[str] | None = None) -> int:
  """Runs one verb; what the user can mend is printed as one message, without a stack trace."""
  parser = make_parser()
  try:
    given, overrides = take_overrides(sys.argv[1:] if arguments is None else arguments)
  except UserError as error:
    parser.error(str(error))
  options = parser.parse_args(given)
  if overrides and options.verb not in CONFIGURED:
    parser.error(f"--config.{next(iter(overrides))}: `flamingo {options.verb}` reads no config")
  options.overrides = overrides
  if arguments is None:
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TensorFlow then imports no Keras, which takes seconds
    if options.verb in TRAINING:
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
    return RUN[options.verb](options) or DONE
  except UserError as error:
    code, message = USER_FAULT, str(error)
  except Preempted as error:
    code, message = PREEMPTED, str(error)
  except PeerLost as error:
    code, message = PEER_LOST, str(error)
  except KeyboardInterrupt:
    code, message = INTERRUPTED, "interrupted; run the same command again to continue."
  except Exception as error:
    code, message = USER_FAULT, what_brings(error)
    if not message:
      print(redacted(traceback.format_exc()), file=sys.stderr, end="")
      return CRASHED
  print(f"flamingo {options.verb}: {redacted(message)}", file=sys.stderr)
  return code


def take_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
  """Separates `--config.field=value` and `--config.field value` from the other arguments.

  Raises:
    UserError: there is no field, or no value; what begins with two dashes is none.
  """
  rest, overrides = [], {}
  remaining = iter(arguments)
  for argument in remaining:
    if not argument.startswith("--config."):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix("--config.").partition("=")
    if not all(name.split(".")):
      raise UserError(f"{argument}: names no field, as --config.optimizer.learning_rate=3e-4 does")
    if not equals and (value := next(remaining, "--")).startswith("--"):
      raise UserError(f"{argument}: has no value, as {argument}=3 has")
    overrides[name] = value
  return rest, overrides


def run_quickstart(options) -> None:
  from launch.devices import keep_compiled
  from launch.quickstart import quickstart

  keep_compiled()
  quickstart(options.data, options.workdir, options.overrides, prepare_only=options.prepare_only)


def run_train(options) -> None:
  from launch.devices import joined, keep_compiled
  from launch.replay import replay
  from launch.train import read_resume, train_config

  check_train(options)
  with joined(options.coordinator, options.processes, options.process, options.peer_timeout):
    keep_compiled()
    if options.replay:
      replay(options.replay, options.overrides)
    elif options.reproduce:
      from launch.reproduce import reproduce

      reproduce(options.reproduce, options.overrides, options.workdir, BEGAN)
    else:
      resume = read_resume(options.allow_changed, options.rewind, options.skip_steps, BEGAN)
      train_config(options.config, options.overrides, options.workdir, resume)


def check_train(options) -> None:
  """Raises UserError unless exactly one thing is asked for."""
  anew = options.replay or options.reproduce
  if anew and (options.allow_changed or options.rewind is not None or options.skip_steps):
    raise UserError("--allow-changed, --rewind and --skip-steps go on with a run; not with --replay or --reproduce.")
  if options.replay and not (options.config or options.reproduce):
    return
  if bool(options.config) == bool(options.reproduce) or not options.workdir or options.replay:
    raise UserError("--workdir is needed with --config or --reproduce, one of the two; or --replay alone.")


def run_config(options) -> None:
  from launch import config_view

  if options.job == "show":
    print(config_view.show(options.path, options.overrides, as_json=options.json))
  elif options.job == "diff":
    print(config_view.diff(options.first, options.second, options.overrides, as_json=options.json))
  else:
    print(config_view.validate(options.path, options.overrides))


def run_launch(options) -> int:
  from launch.launchers import launch_run

  return launch_run(options)


def run_sweep(options) -> int:
  from launch.launchers import TAKES, checked
  from launch.sweep.run import LAUNCHER, WAIT, run_sweep

  trial = ["--config=of a trial", "--workdir=of a trial"]
  told = make_parser().parse_args(["launch", *(options.launcher or LAUNCHER), *trial])
  checked(told)
  if told.dry_run:
    raise UserError("--dry-run: a sweep waits for what it launches. `flamingo launch --dry-run` shows one launch.")
  # A job that a cluster has given up ends its launch, as a trial on this machine does.
  launcher = [*options.launcher, WAIT] if "wait" in TAKES[told.on] else options.launcher
  asked = (options.parallel, options.retries, launcher)
  return run_sweep(options.config, options.overrides, options.workdir, *asked)


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


def run_demo(options) -> None:
  from launch.demo.page import serve
  from launch.devices import keep_compiled

  keep_compiled()
  serve(options.checkpoint, options.host, options.port)


def run_evaluate(options) -> None:
  from launch.devices import joined, keep_compiled

  if options.compare:
    from launch.report.comparison import compare

    first, second = options.compare
    print(compare(first, second, options.out))
    return
  if not (options.config and options.checkpoint):
    raise UserError("--config and --checkpoint are both needed; or --compare alone.")
  from launch.evaluate import evaluate_checkpoint

  with joined(options.coordinator, options.processes, options.process, options.peer_timeout):
    keep_compiled()
    asked = (options.config, options.overrides, options.checkpoint, options.out)
    evaluate_checkpoint(*asked, options.control, options.benchmark)


def run_report(options) -> None:
  from launch.devices import keep_compiled

  if len(options.workdir) > 1 and not options.out:
    raise UserError(f"--out is needed: {len(options.workdir)} runs share one page, as in --out=runs/compared.html.")
  keep_compiled()
  if len(options.workdir) == 1:
    from launch.reporting import write_report

    print(write_report(options.workdir[0], options.out))
  else:
    from launch.reporting_runs import write_runs_report

    print(write_runs_report(options.workdir, options.out))


def run_profile(options) -> None:
  from launch.profiling import profile_run

  profile_run(options.workdir, options.steps, options.patience)


def run_import(options) -> None:
  from launch.importing import import_checkpoint

  print(import_checkpoint(options.format, options.path, options.out, language=options.language, vision=options.vision))


def run_export(options) -> None:
  from launch.exporting import export_model

  print(export_model(options.workdir, options.format, options.out))


def run_data_features(options) -> None:
  from launch.features import write_features

  print(write_features(options.config, options.overrides, options.stream, options.out, options.dtype))


def run_train_tokenizer(options) -> None:
  from launch.tokenizer import write_tokenizer

  print(write_tokenizer(options.input, options.vocabulary, options.out))


def run_miniature(options) -> None:
  from launch.miniature import prepare_miniature

  prepare_miniature(options.out)


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


def run_data(options) -> None:
  JOBS[options.job](options)


JOBS: dict[str, Callable] = {
  "features": run_data_features,
  **{f"build-{kind}": functools.partial(build_data, kind) for kind in KINDS},
  "train-tokenizer": run_train_tokenizer,
  "miniature": run_miniature,
  "explain": run_data_explain,
  "check": run_data_check,
  "inspect": run_data_inspect,
}
RUN = {
  "quickstart": run_quickstart,
  "train": run_train,
  "config": run_config,
  "launch": run_launch,
  "sweep": run_sweep,
  "plan": run_plan,
  "generate": run_generate,
  "demo": run_demo,
  "evaluate": run_evaluate,
  "report": run_report,
  "profile": run_profile,
  "import": run_import,
  "export": run_export,
  "data": run_data,
}


if __name__ == "__main__":
  sys.exit(main())
