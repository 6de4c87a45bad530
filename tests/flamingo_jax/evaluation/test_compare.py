import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.compare import Finished, compare, match_settings

RECEIPT = dict(split_hash="a", support_hash="b", decoding=dict(beams=3))


def result(**fields) -> dict:
  usual = dict(
    setting="", benchmark="mine", task="coco", split="test", shots=4, selection="random", orders=1, seed=0, control=""
  )
  named = usual | fields
  return named | dict(setting=named["setting"] or "-".join(str(named[field]) for field in named if field != "setting"))


def line(name, **fields) -> dict:
  return dict(id=str(name), prompt="<image>Output:", media=[], references=[], prediction="") | fields


def finished(scores, ids=None, *, said=None, metric="CIDEr", total=None, receipt=RECEIPT, **fields) -> Finished:
  """A setting whose score is the mean of its examples', unless a total is given."""
  ids = range(len(scores)) if ids is None else ids
  said = [""] * len(ids) if said is None else said
  entry = dict(metric=metric, per_example=list(scores), score=float(np.mean(scores)) if total is None else total)
  lines = [line(name, prediction=text) for name, text in zip(ids, said, strict=True)]
  return Finished("here", result(**fields) | entry, receipt, lines)


def ranked(margins, labels, ids=None) -> Finished:
  ids = range(len(labels)) if ids is None else ids
  lines = [
    line(name, scores=[0.5, 0.5 + margin], label=int(label))
    for name, margin, label in zip(ids, margins, labels, strict=True)
  ]
  entry = dict(metric="ROC AUC", per_example=[0.0] * len(lines), score=float(roc_auc_score(labels, margins)))
  return Finished("memes", result(task="hateful_memes") | entry, RECEIPT, lines)


def resampled(statistic, count: int) -> tuple[float, float]:
  """The percentile bootstrap of a statistic of indices, written out."""
  draw, values = np.random.default_rng(0), []
  while len(values) < 1000:
    value = statistic(draw.integers(0, count, count))
    if not math.isnan(value):
      values.append(value)
  values.sort()
  ends = []
  for share in (0.025, 0.975):
    place = share * (len(values) - 1)
    low = int(place)
    ends.append(values[low] + (place - low) * (values[low + 1] - values[low]))
  return ends[0], ends[1]


@pytest.fixture
def generator():
  return np.random.default_rng(1)


def test_the_interval_is_that_of_the_mean_change(generator):
  first, second = generator.random(60), generator.random(60)
  found = compare(finished(first), finished(second))
  assert found.difference == pytest.approx(second.mean() - first.mean())
  expected = resampled(lambda places: float(np.mean([second[place] - first[place] for place in places])), 60)
  assert found.interval == pytest.approx(expected, abs=1e-12)
  assert found.notes == ()


def test_the_interval_of_many_examples_is_the_normal_one(generator):
  first = generator.random(4000)
  second = first + generator.normal(0.1, 0.5, 4000)
  low, high = compare(finished(first), finished(second)).interval
  half = 1.96 * np.std(second - first) / math.sqrt(4000)
  assert (high - low) / 2 == pytest.approx(half, rel=0.1)
  assert (high + low) / 2 == pytest.approx(np.mean(second - first), abs=half / 10)


def test_what_moves_both_alike_moves_no_end(generator):
  first = generator.random(50)
  low, high = compare(finished(first), finished(first + 0.25)).interval
  assert (low, high) == (pytest.approx(0.25), pytest.approx(0.25))
  assert compare(finished(first), finished(first)).interval == (0.0, 0.0)


def test_the_other_way_round_signs_change_and_nothing_else(generator):
  first, second = finished(generator.random(40)), finished(generator.random(40))
  there, back = compare(first, second), compare(second, first)
  assert back.difference == -there.difference
  assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
  np.testing.assert_array_equal(back.changes, -there.changes)


def test_examples_are_paired_by_id_whatever_their_order(generator):
  first, second = generator.random(30), generator.random(30)
  words = [f"answer {number}" for number in range(30)]
  shuffled = generator.permutation(30)
  other = finished(second[shuffled], shuffled, said=[words[place] for place in shuffled])
  straight, mixed = (compare(finished(first, said=words), each) for each in (finished(second, said=words), other))
  assert mixed.interval == straight.interval
  assert not mixed.differing.any()
  np.testing.assert_array_equal(mixed.changes, second - first)
  np.testing.assert_array_equal(mixed.shared[:, 1], np.argsort(shuffled))


def test_examples_of_one_alone_are_counted_and_left_out(generator):
  first, second = generator.random(10), generator.random(9)
  found = compare(finished(first), finished(second, range(4, 13)))
  assert found.alone == (4, 3)
  assert found.difference == pytest.approx(np.mean(second[:6] - first[4:]))
  expected = resampled(lambda places: float((second[:6] - first[4:])[places].mean()), 6)
  assert found.interval == pytest.approx(expected)
  assert "over the 6 examples that both have" in found.notes[0]
  assert "CIDEr weighs words" in found.notes[1]


def test_predictions_that_differ_are_marked():
  found = compare(finished([0, 1, 1], said=["a", "b", "c"]), finished([0, 1, 1], said=["a", "B", "c"]))
  assert found.differing.tolist() == [False, True, False]


def test_roc_auc_is_computed_anew_for_each_resample(generator):
  labels = np.arange(40) % 2
  margins = generator.normal(labels, 1.5), generator.normal(2 * labels, 1.5)
  found = compare(*(ranked(each, labels) for each in margins))
  areas = [roc_auc_score(labels, each) for each in margins]
  assert found.difference == pytest.approx(areas[1] - areas[0])

  def difference(places):
    if len(set(labels[places])) < 2:
      return math.nan
    return roc_auc_score(labels[places], margins[1][places]) - roc_auc_score(labels[places], margins[0][places])

  assert found.interval == pytest.approx(resampled(difference, 40), abs=1e-12)
  assert found.notes == ("ROC AUC is no mean: it is computed anew for each resample.",)


def test_roc_auc_over_shared_examples_is_theirs_alone(generator):
  labels = np.arange(30) % 2
  margins = generator.normal(labels, 2), generator.normal(labels, 2)
  found = compare(ranked(margins[0], labels), ranked(margins[1][:20], labels[:20]))
  expected = roc_auc_score(labels[:20], margins[1][:20]) - roc_auc_score(labels[:20], margins[0][:20])
  assert found.difference == pytest.approx(expected)


def test_roc_auc_of_one_class_has_no_interval():
  first, second = ranked([0.0, 1.0, 2.0], [0, 0, 1]), ranked([0.0, 1.0, 2.0], [0, 0, 1], ids=[0, 1, 7])
  found = compare(first, second)
  assert found.interval is None and found.difference == 0
  assert "of one: no interval" in found.notes[0]


def test_mwap_draws_actions(generator):
  first, second = generator.random(7), generator.random(7)
  actions = dict(metric="mWAP", task="rareact")
  clips = [line(number) for number in range(50)]

  def setting(scores, lines):
    entry = dict(actions, per_example=list(scores), score=float(np.mean(scores)))
    return Finished("actions", result(**actions) | entry, RECEIPT, lines)

  found = compare(setting(first, clips), setting(second, clips))
  assert found.interval == pytest.approx(resampled(lambda places: float((second - first)[places].mean()), 7))
  assert found.changes is None and len(found.differing) == 50
  fewer = compare(setting(first, clips), setting(second, clips[:-1]))
  assert fewer.interval is None and "different ones: no interval" in fewer.notes[0]
  assert fewer.difference == pytest.approx(second.mean() - first.mean())


def test_answers_kept_back_leave_only_the_predictions_to_compare():
  kept = dict(metric="VQA accuracy", score=None)
  first, second = (
    Finished("kept", result(task="vqav2") | kept, RECEIPT, [line(0, prediction=text)]) for text in ("a", "b")
  )
  found = compare(first, second)
  assert (found.difference, found.interval, found.changes) == (None, None, None)
  assert found.differing.tolist() == [True]
  assert "kept back" in found.notes[0]


def test_nothing_shared_is_said_and_only_totals_stand():
  found = compare(finished([0.0, 0.5]), finished([1.0], ["other"]))
  assert found.interval is None and found.difference == pytest.approx(0.75)
  assert found.alone == (2, 1) and "No example is in both" in found.notes[0]


@pytest.mark.parametrize(
  ("change", "note"),
  [
    (dict(split_hash="z"), "not what the examples hold"),
    (dict(support_hash="z"), "different support sets"),
    (dict(decoding=dict(beams=1)), "beams is 3 in the first, 1 in the second"),
    (dict(decoding={}), "beams is 3 in the first, None in the second"),
  ],
)
def test_what_else_was_not_the_same_is_said(change, note):
  [found] = compare(finished([0, 1]), finished([0, 1], receipt=RECEIPT | change)).notes
  assert note in found


@pytest.mark.parametrize(
  ("scores", "lines", "message"),
  [
    ([1, 0], [line("a"), line("a")], "the example 'a' has 2 predictions"),
    ([1], [line("a"), line("b")], "scores of 1 examples, but there are 2 predictions"),
    ([1, 1], [line("a"), {"id": "b", "prompt": ""}], "line 3: lacks media, references, prediction"),
  ],
)
def test_a_damaged_setting_is_named(scores, lines, message):
  with pytest.raises(UserError, match=f"runs/x.jsonl.*{message}"):
    Finished("runs/x.jsonl", result() | dict(metric="CIDEr", per_example=scores, score=0.5), RECEIPT, lines)


def test_settings_match_where_all_is_the_same():
  first = [result(shots=0), result(shots=4), result(shots=4, seed=1)]
  second = [result(shots=4, seed=1), result(shots=8), result(shots=0)]
  found = match_settings(first, second)
  assert found.pairs == ((first[0], second[2]), (first[2], second[0]))
  assert found.varied == ""
  assert found.alone == ((first[1]["setting"],), (second[1]["setting"],))


@pytest.mark.parametrize(
  ("field", "value"),
  [("control", "image_blind"), ("selection", "nearest"), ("seed", 7), ("orders", 6), ("shots", 32)],
)
def test_one_field_may_differ_where_nothing_agrees_in_all(field, value):
  first = [result(), result(task="vqav2")]
  second = [each | {field: value} for each in first]
  found = match_settings(first, second)
  assert found.varied == field
  assert found.pairs == tuple(zip(first, second, strict=True))


@pytest.mark.parametrize("change", [dict(seed=1, control="image_blind"), dict(task="flickr30k"), dict(split="val")])
def test_settings_of_two_differences_or_of_other_data_do_not_match(change):
  found = match_settings([result()], [result(**change)])
  assert found.pairs == ()
  assert found.alone == ((result()["setting"],), (result(**change)["setting"],))


def test_settings_that_cannot_be_told_apart_stay_alone():
  first = [result(seed=0), result(seed=1)]
  assert match_settings(first, [result(seed=2)]).pairs == ()
  twice = [result(benchmark="a"), result(benchmark="b")]
  assert match_settings(twice, [result()]).pairs == ()


@pytest.mark.parametrize("varied", [{}, dict(control="image_blind")])
def test_one_task_that_stands_twice_is_paired_by_the_benchmarks_names(varied):
  first = [result(benchmark="short"), result(benchmark="long"), result(benchmark="here", seed=3)]
  second = [result(benchmark=name, **varied) for name in ("long", "short")] + [
    result(benchmark="there", seed=3, **varied)
  ]
  found = match_settings(first, second)
  assert found.pairs == ((first[0], second[1]), (first[1], second[0]), (first[2], second[2]))
  assert found.alone == ((), ())


def test_what_names_leave_over_is_paired_by_the_other_fields():
  first = [result(benchmark="other"), result(benchmark="mine")]
  second = [result(benchmark="mine"), result(benchmark="renamed")]
  assert match_settings(first, second).pairs == ((first[0], second[1]), (first[1], second[0]))
