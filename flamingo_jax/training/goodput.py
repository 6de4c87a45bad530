"""Where the time of a run went: useful steps, and what was lost, by cause."""

import collections

CAUSES = ("useful", "input_wait", "start_up", "restore", "compile", "evaluation", "save", "replayed")


def of_line(line: dict) -> dict[str, float]:
  """Seconds of one line of metrics.jsonl, by cause."""
  waited = line["seconds"] * line["input_wait"]
  return dict(
    useful=line["seconds"] - waited,
    input_wait=waited,
    evaluation=line.get("evaluation_seconds", 0.0),
    save=line.get("save_seconds", 0.0),
  )


def spent(lines: list[dict], history: list[dict]) -> collections.Counter:
  """Seconds by cause, over all starts of a run.

  Args:
    lines: of metrics.jsonl.
    history: of history.jsonl: of every start, what went before its first step, and the steps that it repeats.

  Starts that were killed before their first step, and the time between two starts, leave no trace to be counted.
  """
  total: collections.Counter = collections.Counter(dict.fromkeys(CAUSES, 0.0))
  for event in history:
    if event["event"] == "start":
      total.update({cause: event["seconds"][cause] for cause in event["seconds"]})
    if event["event"] == "end":
      total.update(save=event["save_seconds"])
  for line in lines:
    total.update(of_line(line))
  return total


def goodput(total: dict[str, float]) -> float:
  """The share of all seconds that went into steps which count, without waiting for input."""
  everything = sum(total.values())
  return total["useful"] / everything if everything else 0.0
