"""Few-shot evaluation of a tiny model, held against whole forward passes over prompts put together by hand."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import scipy.special
from miniatures import coco, hateful_memes, media, msvdqa, nextqa, write

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.answering import Limits, Model, Speech
from flamingo_jax.evaluation.benchmark import Benchmark, read_benchmark
from flamingo_jax.evaluation.predictions import predictions_path, read_predictions, read_scores
from flamingo_jax.evaluation.prompts import Medium
from flamingo_jax.evaluation.runner import evaluate, plans, quick_scores
from flamingo_jax.evaluation.settings import BenchmarkConfig
from flamingo_jax.evaluation.sight import UnreadableMedia
from flamingo_jax.evaluation.tasks import TASKS, Example, few_shot_prompt, read_split
from flamingo_jax.evaluation.tasks.scoring import Resources

CHECKPOINT = dict(step=3, hashes={"trained": "abc"})
LENGTH, SLOTS = 64, 3  # of prompts by hand
FRAMES = 5  # of films; more than the tiny resampler has embeddings for
GREEDY = Speech(beams=1, length_penalty=1.0, new_tokens=4)


class LetterWords:
  """A tokenizer of the tiny model's 32 tokens: a word is the sum of its letters."""

  bos, eos, image, end_of_chunk = 0, 0, 32, 33

  def encode(self, text: str) -> list[int]:
    return [1 + sum(word.encode()) % 31 for word in text.split()]

  def decode(self, tokens) -> str:
    return " ".join(f"w{token}" for token in tokens)


def read(medium) -> np.ndarray:
  """Pixels that depend on the file's name alone; of films, up to FRAMES frames."""
  seed = int.from_bytes(hashlib.sha256(medium.path.rsplit("/", 1)[-1].encode()).digest()[:4])
  frames = 1 + seed % FRAMES if medium.path.endswith(".avi") else 1
  return np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def make_model(tiny, parameters):
  def make(rows: int = 2, context: int = 500, read=read) -> Model:
    return Model(
      tiny, parameters, LetterWords(), read, Limits(rows=rows, frames=FRAMES, context=context, media_memory=1.0)
    )

  return make


@pytest.fixture(scope="module")
def model(make_model):
  return make_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """COCO, MSVDQA and HatefulMemes, two or three examples in each split."""
  folder = tmp_path_factory.mktemp("benchmarks")
  coco(folder / "coco")
  hateful_memes(folder / "hateful_memes")
  msvdqa(folder / "msvdqa")
  return folder


@pytest.fixture
def make_benchmark(folder):
  def make(name: str, **changes):
    settings = dict(folder=str(folder / name), shots=(2,), support=2, beams=1, new_tokens=4) | changes
    return read_benchmark(name, BenchmarkConfig(**settings), wordnet="")

  return make


@pytest.fixture
def run(tmp_path):
  """Evaluates into a folder, and gives the receipts' and predictions' lines by setting."""

  def run(model, benchmark, control="", out=tmp_path) -> dict[str, tuple[dict, list[dict]]]:
    evaluate(model, benchmark, out, dict(checkpoint=CHECKPOINT), control=control, wordnet="", tell=lambda *_: None)
    return {line["setting"]: read_predictions(predictions_path(out, line["setting"])) for line in read_scores(out)}

  return run


def by_hand(pieces: list) -> tuple[dict, int]:
  """A prompt as a padded row of a batch, and its length: strings are text, files are media, None is a chunk's end."""
  tokens, media, index = [0], [], [-1]
  for piece in pieces:
    if piece is None:
      new = [LetterWords.end_of_chunk]
    elif piece.endswith((".jpg", ".png")):
      media.append(piece)
      new = [LetterWords.image]
    else:
      new = LetterWords().encode(piece)
    tokens += new
    index += [len(media) - 1] * len(new)
  batch = dict(
    tokens=np.zeros((1, LENGTH), np.int32),
    segments=(np.arange(LENGTH) < len(tokens))[None].astype(np.int32),
    media=np.zeros((1, SLOTS, 1, 8, 8, 3), np.uint8),
    media_mask=(np.arange(SLOTS) < len(media))[None, :, None],
    media_index=np.full((1, LENGTH), -1, np.int32),
  )
  batch["tokens"][0, : len(tokens)], batch["media_index"][0, : len(index)] = tokens, index
  for slot, path in enumerate(media):
    batch["media"][0, slot] = read(Medium(path))
  return batch, len(tokens)


def likelihood(logits, parameters, pieces: list, option: str) -> float:
  """log p of an option's words after a prompt, from one whole forward pass."""
  batch, length = by_hand([*pieces, option])
  found = np.asarray(logits(parameters, batch), np.float64)[0]
  log_p = found - scipy.special.logsumexp(found, axis=-1, keepdims=True)
  start = length - len(LetterWords().encode(option))
  return sum(log_p[place - 1, batch["tokens"][0, place]] for place in range(start, length))


def greedily(logits, parameters, pieces: list, count: int) -> str:
  """What is written one token at a time, each after a whole forward pass."""
  batch, length = by_hand(pieces)
  written = []
  for place in range(length, length + count):
    found = np.array(logits(parameters, batch))[0, place - 1]
    found[LetterWords.image] = -np.inf
    token = int(found.argmax())
    if token in (LetterWords.end_of_chunk, LetterWords.eos):
      break
    written.append(token)
    batch["tokens"][0, place], batch["segments"][0, place] = token, 1
    batch["media_index"][0, place] = batch["media_index"][0, place - 1]
  return LetterWords().decode(written)


def caption_pieces(folder, support: list[str]) -> list:
  """COCO's prompt by hand: the first caption of each shot, then the query, to which the caller adds its picture."""
  captions = {example.id: example for example in read_split("coco", folder / "coco", "train").examples}
  shots = [(captions[name].medium.path, captions[name].references[0]) for name in support]
  return [piece for path, caption in shots for piece in (path, f"Output: {caption}", None)]


def test_answers_are_those_of_a_plain_loop_over_prompts_by_hand(run, model, make_benchmark, folder, logits, parameters):
  [(receipt, lines)] = run(model, make_benchmark("coco")).values()
  queries = read_split("coco", folder / "coco", "test").examples
  assert [line["id"] for line in lines] == [query.id for query in queries]
  for line, query in zip(lines, queries, strict=True):
    pieces = [*caption_pieces(folder, line["support"]), query.medium.path, "Output:"]
    assert line["raw"] == greedily(logits, parameters, pieces, 4)
    assert line["references"] == list(query.references)
    assert [path for path, _, _ in line["media"]] == [pieces[0], pieces[3], query.medium.path]
  assert receipt["decoding"] == dict(beams=1, length_penalty=1.0, new_tokens=4)
  assert receipt["checkpoint"] == CHECKPOINT


def test_candidates_are_ranked_by_their_likelihood_and_ensembles_average_it(
  run, model, make_benchmark, folder, logits, parameters
):
  benchmark = make_benchmark("hateful_memes", orders=6)
  [(_, lines)] = run(model, benchmark).values()
  train = {example.id: example for example in read_split("hateful_memes", folder / "hateful_memes", "train").examples}

  def meme(example) -> list:
    return [example.medium.path, f'is an image with written: "{example.written}" on it. Is it hateful? Answer:']

  for line, query in zip(lines, benchmark.queries, strict=True):
    assert sorted(line["orders"]) == [[0, 1], [1, 0]]  # two shots have no more
    expected = []
    for order in line["orders"]:
      shots = [train[line["support"][place]] for place in order]
      before = [each for shot in shots for each in (*meme(shot), shot.options[shot.label], None)]
      expected.append([likelihood(logits, parameters, [*before, *meme(query)], option) for option in query.options])
    np.testing.assert_allclose(line["scores"], np.mean(expected, axis=0), rtol=1e-4)
    assert line["prediction"] == query.options[int(np.argmax(line["scores"]))]


def test_without_shots_two_examples_are_shown_as_text(run, model, make_benchmark, folder, logits, parameters):
  [(_, lines)] = run(model, make_benchmark("coco", shots=(0,))).values()
  for line in lines:
    shown = [piece for piece in caption_pieces(folder, line["support"]) if piece is None or piece.startswith("Output")]
    query = line["media"][-1][0]
    assert len(line["media"]) == 1 and len(shown) == 4
    assert line["raw"] == greedily(logits, parameters, [*shown, query, "Output:"], 4)


@pytest.mark.parametrize("name", ["coco", "hateful_memes"])
def test_shots_that_all_queries_share_are_read_once_and_change_nothing(model, make_benchmark, name):
  benchmark = make_benchmark(name, selection="fixed")
  [plan] = plans(model, benchmark, "")
  asked = [plan.asked(place) for place in range(2)]
  assert asked[0].support == asked[1].support
  prompts = [each.prompts[0] for each in asked]
  model.prefixes.clear()
  if benchmark.task.ranked:
    options = [each.query.options for each in asked]
    shared, alone = (model.rank(prompts, options, shared=shared) for shared in (True, False))
    np.testing.assert_allclose(shared, alone, rtol=1e-4)
  else:
    assert model.write(prompts, GREEDY, shared=True) == model.write(prompts, GREEDY, shared=False)
  assert len(model.prefixes) == 1


@pytest.mark.parametrize("name", ["coco", "msvdqa"])
def test_predictions_do_not_depend_on_how_many_are_asked_at_once(
  run, model, make_model, make_benchmark, tmp_path, name
):
  """Nor do those about films on how long the others are."""
  benchmark = make_benchmark(name, shots=(1,))
  assert name == "coco" or len({len(read(query.medium)) for query in benchmark.queries}) > 1
  first = run(model, benchmark, out=tmp_path / "two")
  assert run(make_model(1), benchmark, out=tmp_path / "one") == first


@pytest.mark.parametrize("cut", ["within the first prediction", "within the second", "in the receipt"])
def test_an_evaluation_that_was_cut_short_goes_on_to_the_same_end(run, make_model, make_benchmark, tmp_path, cut):
  model, benchmark = make_model(1), make_benchmark("coco")
  run(model, benchmark)
  [path] = (tmp_path / "predictions").iterdir()
  whole, scores = path.read_bytes(), read_scores(tmp_path)
  lines = whole.splitlines(keepends=True)
  kept = dict(zip(["in the receipt", "within the first prediction", "within the second"], range(3), strict=True))[cut]
  path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
  (tmp_path / "scores.json").unlink()
  run(model, benchmark)
  assert path.read_bytes() == whole
  assert read_scores(tmp_path) == scores


def test_a_finished_evaluation_asks_nothing_again(run, model, make_benchmark):
  benchmark = make_benchmark("coco")
  before = run(model, benchmark)
  model_that_fails = dataclasses.make_dataclass("Nothing", [("limits", Limits)])(model.limits)
  assert run(model_that_fails, benchmark) == before


def test_predictions_of_something_else_are_not_gone_on_with(run, model, make_benchmark):
  run(model, make_benchmark("coco"))
  with pytest.raises(UserError, match=r"decoding\.new_tokens: 4 there, 5 here") as caught:
    run(model, make_benchmark("coco", new_tokens=5))
  assert "another --out" in str(caught.value)


def test_too_long_a_prompt_says_how_many_shots_fit(run, make_model, make_benchmark, tmp_path):
  benchmark = make_benchmark("coco", new_tokens=6)
  [plan] = plans(make_model(), benchmark, "")
  longest = max(1 + len(make_model().tokens(prompt)) + 6 for place in range(2) for prompt in plan.asked(place).prompts)
  run(make_model(context=longest), benchmark)
  with pytest.raises(UserError, match=f"longer than the {longest - 1} tokens .* 1 shots fit"):
    run(make_model(context=longest - 1), benchmark, out=tmp_path / "other")


@pytest.mark.parametrize(
  ("context", "shots", "message"),
  [
    (8, (2,), "the query COCO.* alone is longer than the 8 tokens .* set benchmarks.coco.new_tokens below 6, or"),
    (8, (0,), "the query COCO.* alone is longer than the 8 tokens .* set context above 8 .*, or shorten its question"),
    (
      9,
      (0,),
      "the prompt of query COCO.* than the 9 tokens .* texts before it .* set benchmarks.coco.new_tokens below",
    ),
    (9, (2,), "the prompt of query COCO.* than the 9 tokens .* 0 shots fit: set benchmarks.coco.shots"),
  ],
)
def test_a_prompt_that_is_too_long_says_what_would_help(run, make_model, make_benchmark, context, shots, message):
  """`<BOS>`, the picture, "Output:" and six new tokens are nine."""
  with pytest.raises(UserError, match=message):
    run(make_model(context=context), make_benchmark("coco", new_tokens=6, shots=shots))


def test_of_ranked_tasks_no_new_tokens_are_spoken_of(run, make_model, make_benchmark):
  with pytest.raises(UserError, match="alone is longer than the 5 tokens") as caught:
    run(make_model(context=5), make_benchmark("hateful_memes", shots=(0,)))
  assert "new_tokens" not in str(caught.value)


def test_shots_by_likeness_are_the_nearest_of_what_the_encoder_sees_and_the_nearest_stands_last(model, make_benchmark):
  benchmark = make_benchmark("coco", selection="nearest")
  [plan] = plans(model, benchmark, "")
  seen = {
    example.id: model.sight.features([example.medium])[0].astype(np.float64).mean(axis=(0, 1))
    for example in benchmark.support + benchmark.queries
  }

  def cosine(one, other) -> float:
    return seen[one] @ seen[other] / np.linalg.norm(seen[one]) / np.linalg.norm(seen[other])

  for place, query in enumerate(benchmark.queries):
    support = plan.asked(place).support
    assert cosine(support[-1], query.id) > cosine(support[0], query.id)


@pytest.mark.parametrize("selection", ["random", "nearest"])
def test_no_shot_shows_the_picture_of_its_query(model, make_benchmark, selection):
  benchmark = make_benchmark("coco", selection=selection, seeds=tuple(range(10)))
  query, other = benchmark.queries
  again = dataclasses.replace(query, id="another question about it")
  support = (again, *benchmark.support, dataclasses.replace(other, medium=benchmark.support[0].medium))
  shown = [
    plan.asked(place) for plan in plans(model, dataclasses.replace(benchmark, support=support), "") for place in (0, 1)
  ]
  for asked in shown:
    of_others = {
      example.id for example in support if asked.query.id != example.id and asked.query.medium != example.medium
    }
    assert set(asked.support) <= of_others
  assert any(again.id in asked.support for asked in shown)  # before the other query it may stand


def test_a_query_without_another_support_example_is_an_error(model, make_benchmark):
  benchmark = make_benchmark("coco")
  again = dataclasses.replace(benchmark.queries[0], id="another question about it")
  crowded = dataclasses.replace(benchmark, support=(again, benchmark.support[0]))
  with pytest.raises(UserError, match="its support set has 2, 1 of which are the query or show what it shows"):
    list(plans(model, crowded, ""))


@pytest.fixture
def pairs(tmp_path):
  """Twelve captions of six pictures to show."""
  rows = [
    dict(id=f"caption {number}", image=f"{number // 2}.png", split="train", captions=[f"Number {number}."])
    for number in range(12)
  ]
  write(tmp_path, "captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  media(tmp_path, *(row["image"] for row in rows))

  def read(**changes):
    settings = dict(task="pictures", split="train", support=12, seeds=tuple(range(10))) | changes
    return read_benchmark("pairs", BenchmarkConfig(folder=str(tmp_path), **settings), wordnet="")

  return read


@pytest.mark.parametrize(
  "changes", [dict(selection="fixed", shots=(0, 4)), dict(shots=(0,)), dict(selection="nearest", shots=(0,))]
)
def test_shots_of_all_queries_are_none_that_is_asked_about_nor_show_its_picture(model, pairs, changes):
  benchmark = pairs(queries=3, **changes)
  pictures = {example.id: example.medium for example in benchmark.support}
  for plan in plans(model, benchmark, ""):
    asked = [plan.asked(place) for place in range(3)]
    [shown] = {each.support for each in asked}
    assert not {pictures[name] for name in shown} & {query.medium for query in benchmark.queries}


def test_shots_of_all_queries_need_examples_that_are_not_asked_about(model, pairs):
  assert len(list(plans(model, pairs(queries=1, selection="fixed", shots=(8,), seeds=(0,)), ""))) == 1
  with pytest.raises(
    UserError, match=r"2 examples stand before all queries, but 12 of the 12 .* benchmarks\.pairs\.queries"
  ):
    list(plans(model, pairs(shots=(0,)), ""))


@pytest.mark.parametrize(
  ("lacking", "message"),
  [("wordnet/index.noun", "it lacks index.noun"), ("nextqa/stopwords.txt", "stopwords.txt: there is no such file")],
)
def test_what_a_metric_reads_is_opened_before_anything_is_predicted(tmp_path, lacking, message):
  nextqa(tmp_path / "nextqa")
  for kind in ("noun", "verb", "adj", "adv"):
    for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc"):
      write(tmp_path / "wordnet", name, "")
  config = BenchmarkConfig(folder=str(tmp_path / "nextqa"), shots=(1,), support=2)
  assert len(read_benchmark("nextqa", config, wordnet=str(tmp_path / "wordnet")).queries) == 2
  (tmp_path / lacking).unlink()
  with pytest.raises(UserError, match=message):
    read_benchmark("nextqa", config, wordnet=str(tmp_path / "wordnet"))


def test_what_was_seen_is_kept_up_to_its_limit_and_not_beyond(tiny, parameters, make_benchmark):
  one = 4 * 16 * 4  # places, width, bytes
  limits = Limits(rows=2, frames=FRAMES, context=500, media_memory=2.5 * one / 2**30)
  seen = []
  model = Model(tiny, parameters, LetterWords(), lambda medium: seen.append(medium) or read(medium), limits)
  media = [example.medium for example in make_benchmark("coco").support + make_benchmark("coco").queries]
  first = model.sight.features(media)
  assert len(model.sight.kept) == 2
  assert all(features.base is None for features in model.sight.kept.values())  # no view that keeps others alive
  again = model.sight.features(media[::-1])[::-1]
  np.testing.assert_array_equal(first, again)
  assert len(seen) == 4 + 2  # the two that were kept were not read again


@pytest.fixture
def films(make_benchmark):
  """Sixteen captioned films to show, and five to ask about, of a data set whose films vanish."""

  def examples(part: str, count: int) -> tuple[Example, ...]:
    return tuple(
      Example(f"{part}/{number}", Medium(f"{part}/{number}.avi"), references=(f"Film {number} of {part}.",))
      for number in range(count)
    )

  def make(**settings) -> Benchmark:
    plain = make_benchmark("coco", **settings)
    return dataclasses.replace(plain, support=examples("train", 16), queries=examples("test", 5), films_vanish=True)

  return make


def failing_at(*paths: str):
  """Reads as `read` does, but for films of these names."""

  def read_whole(medium) -> np.ndarray:
    if medium.path in paths:
      raise UnreadableMedia({medium: f"{medium.path}: broken_video"})
    return read(medium)

  return read_whole


LOST = {"test/1", "test/4"}
IN_PLACE = [("random", 2), ("fixed", 2), ("nearest", 2), ("random", 0)]


def broken(names) -> list[str]:
  return [f"{name}.avi" for name in names]


@pytest.mark.parametrize(("selection", "shots"), IN_PLACE)
def test_for_a_film_that_cannot_be_decoded_the_next_of_the_draw_stands_in(
  run, make_model, films, tmp_path, capsys, selection, shots
):
  more = films(selection=selection, shots=(shots + 2 if shots else 0,))
  [(_, longer)] = run(make_model(), more, out=tmp_path / "longer").values()
  drawn = {line["id"]: line["support"][:: -1 if selection == "nearest" else 1] for line in longer}  # the first go on
  shown = {drawn["test/0"][0], drawn["test/2"][1]}
  benchmark = films(selection=selection, shots=(shots,))
  reads = failing_at(*broken(LOST | shown))
  [(_, lines)] = run(make_model(read=reads), benchmark, out=tmp_path / "broken").values()
  assert {line["id"] for line in lines if "unreadable" in line} == LOST
  unreadable = shown if shots else ()  # of texts alone no film is looked at
  for line in lines:
    if line["id"] not in LOST:
      expected = [name for name in drawn[line["id"]] if name not in unreadable][: shots or 2]
      assert line["support"] == expected[:: -1 if selection == "nearest" else 1]
  [score] = read_scores(tmp_path / "broken")
  assert (score["examples"], score["unreadable"], len(score["per_example"])) == (3, 2, 3)
  told = capsys.readouterr().err
  assert all((f"{name}.avi: broken_video" in told) == (name in LOST or bool(shots)) for name in LOST | shown)


@pytest.mark.parametrize(("selection", "shots"), IN_PLACE)
def test_what_is_left_is_answered_and_scored_as_if_the_broken_films_had_never_been_there(
  run, make_model, films, tmp_path, selection, shots
):
  benchmark = films(selection=selection, shots=(shots,))
  support = {example.id: example for example in benchmark.support}
  reads = failing_at(*broken(LOST | {"train/3", "train/11"}))
  [(_, lines)] = run(make_model(read=reads), benchmark, out=tmp_path / "broken").values()
  told = {line["id"]: line for line in lines if "raw" in line}
  queries = [query for query in benchmark.queries if query.id not in LOST]
  model = make_model()
  for query in queries:
    shown = [support[name] for name in told[query.id]["support"]]
    assert model.write([few_shot_prompt("coco", query, shown, shots=shots)], GREEDY) == [told[query.id]["raw"]]
  expected = TASKS["coco"].score(queries, [told[query.id]["prediction"] for query in queries], Resources(tmp_path))
  [score] = read_scores(tmp_path / "broken")
  assert (score["score"], score["per_example"]) == (expected.total, expected.per_example.tolist())


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_an_evaluation_that_goes_on_finds_the_broken_films_again(run, make_model, films, tmp_path, kept):
  model = make_model(read=failing_at(*broken(LOST | {f"train/{number}" for number in range(6)})))
  run(model, films(shots=(2,)))
  [path] = (tmp_path / "predictions").iterdir()
  whole, scores = path.read_bytes(), read_scores(tmp_path)
  path.write_bytes(b"".join(whole.splitlines(keepends=True)[: 1 + kept]))
  run(model, films(shots=(2,)))
  assert path.read_bytes() == whole
  assert read_scores(tmp_path) == scores


def test_a_broken_file_of_a_data_set_that_does_not_vanish_ends_the_evaluation(run, make_model, films):
  with pytest.raises(UserError, match=r"^train/3\.avi: broken_video$"):
    run(make_model(read=failing_at("train/3.avi")), dataclasses.replace(films(shots=(14,)), films_vanish=False))


def test_where_no_film_can_be_decoded_there_is_no_score(run, make_model, films):
  every = [f"test/{number}.avi" for number in range(5)]
  with pytest.raises(UserError, match="none of 5 films can be decoded"):
    run(make_model(read=failing_at(*every)), films(shots=(1,)))


def test_too_few_films_left_to_show_are_an_error(run, make_model, films):
  with pytest.raises(UserError, match="16 examples are asked for, but there are 15 to choose from"):
    run(make_model(read=failing_at("train/3.avi")), films(shots=(16,)))


@pytest.mark.parametrize("control", ["image_blind", "shuffled_images", "shuffled_shots"])
def test_controls_take_away_what_they_say_and_are_settings_of_their_own(run, model, make_benchmark, control):
  benchmark = make_benchmark("coco")
  found = run(model, benchmark)
  run(model, benchmark, control)
  found = run(model, benchmark)
  (_, plain), (receipt, controlled) = found["coco-2-random-seed0"], found[f"coco-2-random-seed0-{control}"]
  assert receipt["control"] == control
  for line, other in zip(plain, controlled, strict=True):
    media, prompt = line["media"], line["prompt"]
    chunks = prompt.split("<EOC>")
    assert other["media"] == [] if control == "image_blind" else sorted(other["media"]) == sorted(media)
    if control == "image_blind":
      assert other["prompt"] == prompt.replace("<image>", "")
    elif control == "shuffled_images":
      assert other["prompt"] == prompt
      assert all(one != two for one, two in zip(media, other["media"], strict=True))
    else:
      assert sorted(other["prompt"].split("<EOC>")[:-1]) == sorted(chunks[:-1])
      assert other["media"][-1] == media[-1]


def test_answers_that_are_kept_back_are_predicted_and_not_scored(run, model, make_benchmark, folder, tmp_path):
  benchmark = make_benchmark("coco")
  hidden = tuple(dataclasses.replace(query, references=()) for query in benchmark.queries)
  run(model, dataclasses.replace(benchmark, queries=hidden))
  [line] = read_scores(tmp_path)
  assert line["score"] is None and line["examples"] == 2
  assert len(read_predictions(predictions_path(tmp_path, line["setting"]))[1]) == 2


def test_scores_during_training_are_those_of_an_evaluation(run, model, make_benchmark, tmp_path):
  benchmark = make_benchmark("hateful_memes", shots=(0, 2), seeds=(0, 1))
  run(model, benchmark)
  scores = read_scores(tmp_path)
  expected = {
    f"few_shot/hateful_memes/{shots}": np.mean([line["score"] for line in scores if line["shots"] == shots])
    for shots in (0, 2)
  }
  assert quick_scores(model, benchmark, "") == pytest.approx(expected)


def test_more_shots_than_support_examples_are_an_error(run, model, make_benchmark):
  with pytest.raises(UserError, match="4 examples stand before a query, but its support set has 2\\. Ask for fewer"):
    run(model, make_benchmark("coco", shots=(0, 4)))


def test_damaged_predictions_are_named(run, model, make_benchmark, tmp_path):
  run(model, make_benchmark("coco"))
  [path] = (tmp_path / "predictions").iterdir()
  path.write_text(json.dumps(dict(something="else")) + "\n")
  with pytest.raises(UserError, match=r"coco-2-random-seed0.jsonl: is not a file of predictions"):
    run(model, make_benchmark("coco"))
