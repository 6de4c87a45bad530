import dataclasses
import functools
import itertools
import pathlib
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import lengths as lengths_module
from data_pipelines.lengths import pair_lengths
from data_pipelines.packing import NOBODY, make_plan
from data_pipelines.schema import Example
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import Sources
from data_pipelines.stream import Stream
from data_pipelines.stream_config import StreamConfig, check_stream
from data_pipelines.tokenizer import load_tokenizer
from flamingo_jax.errors import UserError
from flamingo_jax.models.flamingo import Flamingo, FlamingoConfig, initialize
from flamingo_jax.models.gated_cross_attention import GatedCrossAttentionConfig
from flamingo_jax.models.language.decoder import DecoderConfig
from flamingo_jax.models.parameters import flat, nested
from flamingo_jax.models.perceiver_resampler import PerceiverResamplerConfig
from flamingo_jax.models.vision.vit import VitConfig
from launch.config import load_config
from launch.experiment import read_experiment

SIZE = 8  # of pictures, pixels
AUGMENTED = dict(flip=True, colour=0.3, crop=0.7)
records = st.lists(st.integers(0, 40), min_size=1, max_size=80)


pytestmark = pytest.mark.usefixtures("few_optimizations")


def epoch_of(plan, seed, epoch):
  """The records of every row of an epoch."""
  rows = plan.places(np.arange(plan.rows), seed, np.full(plan.rows, epoch))
  return [plan.order[places[places != NOBODY]].tolist() for places in rows]


@given(records, st.integers(4, 40), st.integers(1, 6), st.integers(0, 99), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_every_record_of_an_epoch_stands_once_in_a_row_that_has_room_for_it(lengths, length, slots, seed, epoch):
  plan = make_plan(np.array(lengths), length, slots)
  rows = epoch_of(plan, seed, epoch)
  assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
  for row in rows:
    assert 1 <= len(row) <= slots
    assert sum(min(lengths[record], length) for record in row) <= length


@given(records, st.integers(4, 40), st.integers(1, 6))
@settings(deadline=None)
def test_a_plan_has_no_more_rows_than_first_fit_decreasing_pair_by_pair(lengths, length, slots):
  rows: list[list[int]] = []
  for room in sorted((min(one, length) for one in lengths), reverse=True):
    fitting = [row for row in rows if len(row) < slots and sum(row) + room <= length]
    if fitting:
      fitting[0].append(room)
    else:
      rows.append([room])
  plan = make_plan(np.array(lengths), length, slots)
  least = max(-(-len(lengths) // slots), -(-sum(min(one, length) for one in lengths) // length))
  assert least <= plan.rows <= len(rows)


@pytest.mark.parametrize("length", [30, 63, 255])  # which, and one, is how far keys of the same length are apart
def test_a_record_shares_its_row_with_others_in_every_epoch(length):
  plan = make_plan(np.full(600, length // 3), length, slots=3)
  company = [next(frozenset(row) for row in epoch_of(plan, 3, epoch) if 7 in row) for epoch in range(20)]
  assert len(set(company)) == 20
  assert len(set().union(*company)) > 20  # of 40 draws among 599 others


def test_another_seed_deals_other_records():
  plan = make_plan(np.arange(60) % 3 + 5, length=30, slots=4)
  assert epoch_of(plan, 3, 0) != epoch_of(plan, 4, 0)


@pytest.fixture(scope="session")
def pairs(picture):
  """Twenty-three captioned pictures; the caption is the record's number and a few words, more or less of them."""
  return [Example(("", f"{i}: " + "the " * (i % 7)), (picture(i, 12, 10),), f"pairs/{i}", "CC0") for i in range(23)]


@pytest.fixture
def stream(tmp_path, tokenizer):
  """Writes pairs to real shards and opens them as a packed stream; `spoil` may damage the files in between."""

  def make(examples, *, seed=3, training=True, spoil=lambda folder: None, **changes):
    folder = tmp_path / f"stream-{len(list(tmp_path.iterdir()))}"
    write_shards(folder, examples, {}, records_per_shard=8)
    spoil(folder)
    fields = dict(source="unused", layout="pairs", length=48, media=4, pack=True, batch_size=4)
    return Stream(StreamConfig(**fields | changes), Sources((open_shards(folder),)), tokenizer, SIZE, seed, training)

  return make


def take(stream, count, start=0, **hosts):
  return list(itertools.islice(stream.batches(start, **hosts), count))


def joined(batches):
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def documents(batch, row):
  """The documents of a row, in order: what each array holds of them, and their pictures."""
  for segment in range(1, batch["media"].shape[1] + 1):
    inside = batch["segments"][row] == segment
    arrays = {name: batch[name][row][inside] for name in ("tokens", "loss_weights", "media_index")}
    yield arrays | {name: batch[name][row][segment - 1] for name in ("media", "media_mask")}


def numbers(stream, batch):
  """The record of each document of a batch, by the number that its caption begins with."""
  return [
    int(stream.tokenizer.decode(document["tokens"]).split(":")[0])
    for row in range(len(batch["tokens"]))
    for document in documents(batch, row)
    if len(document["tokens"])
  ]


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(stream, pairs, hosts):
  read = stream(pairs, **AUGMENTED)
  alone = take(read, 5)
  shares = [take(read, 5, own=[host], parts=hosts) for host in range(hosts)]
  for step in range(5):
    assert_equal(joined([share[step] for share in shares]), alone[step])


@pytest.mark.parametrize("start", [1, 4, 9])
def test_a_run_that_starts_at_a_step_reads_what_the_whole_run_read_there(stream, pairs, start):
  whole = take(stream(pairs, **AUGMENTED), start + 3)
  for resumed, there in zip(take(stream(pairs, **AUGMENTED), 3, start), whole[start:], strict=True):
    assert_equal(resumed, there)


@pytest.mark.parametrize("threads", [1, 7])
def test_the_number_of_threads_changes_nothing(stream, pairs, threads):
  read = stream(pairs, **AUGMENTED)
  with ThreadPoolExecutor(threads) as some, ThreadPoolExecutor(3) as three:
    for left, right in zip(take(read, 4, pool=some), take(read, 4, pool=three), strict=True):
      assert_equal(left, right)


def test_a_far_step_reads_no_more_than_the_first_one(stream, pairs, monkeypatch):
  read, read_one, counts = stream(pairs, **AUGMENTED), Sources.__getitem__, []
  monkeypatch.setattr(Sources, "__getitem__", lambda self, index: counts.append(index) or read_one(self, index))
  for step in (0, 10**6, 10**12):
    counts.clear()
    take(read, 1, step)
    assert 0 < len(counts) <= 200


def test_every_epoch_of_batches_holds_each_pair_once(stream, pairs):
  read = stream(pairs, batch_size=1)
  rows = take(read, 3 * read.epoch_rows)
  for epoch in range(3):
    found = itertools.chain(*(numbers(read, row) for row in rows[epoch * read.epoch_rows :][: read.epoch_rows]))
    assert sorted(found) == list(range(23))


def test_a_pair_of_a_packed_row_is_what_it_is_in_a_row_of_its_own(stream, pairs):
  packed, alone = stream(pairs, training=False), stream(pairs, training=False, pack=False, media=1)
  rows = list(alone.rows())
  batch = joined(take(packed, 2))
  assert (batch["segments"].max(axis=1) > 1).all()
  for row in range(8):
    for slot, document in enumerate(documents(batch, row)):
      if not len(document["tokens"]):
        assert not document["media_mask"].any()
        continue
      number = int(packed.tokenizer.decode(document["tokens"]).split(":")[0])
      expected = next(documents({name: array[None] for name, array in rows[number].items()}, 0))
      index = expected["media_index"]
      assert_equal(document, expected | {"media_index": np.where(index < 0, -1, index + slot)})


def test_what_no_pair_has_room_for_is_padding(stream, pairs):
  batch = joined(take(stream(pairs, **AUGMENTED), 4))
  padding = batch["segments"] == 0
  assert padding.any()
  assert not batch["tokens"][padding].any()
  assert not batch["loss_weights"][padding].any()
  assert (batch["media_index"][padding] == -1).all()


def affected(stream, clean):
  """Which tokens [rows, L] and media slots [rows, N] belong to record 3."""
  tokens, slots = np.zeros(clean["tokens"].shape, bool), np.zeros(clean["media"].shape[:2], bool)
  for row in range(len(tokens)):
    for slot, document in enumerate(documents(clean, row)):
      if stream.tokenizer.decode(document["tokens"]).strip().startswith("3:"):
        tokens[row], slots[row, slot] = clean["segments"][row] == slot + 1, True
  assert slots.sum() >= 2
  return tokens, slots


def spoiled(pairs, **changes):
  fields = dict(texts=pairs[3].texts, media=pairs[3].media) | changes
  return [*pairs[:3], Example(**fields, source="pairs/3", license="CC0"), *pairs[4:]]


def test_a_broken_picture_is_a_masked_slot_and_changes_nothing_else(stream, pairs, faults_of):
  whole = stream(pairs, **AUGMENTED)
  clean = joined(take(whole, 6))
  found = joined(take(stream(spoiled(pairs, media=(pairs[3].media[0][:100],)), **AUGMENTED), 6))
  _, slots = affected(whole, clean)
  for name in ("tokens", "loss_weights", "segments", "media_index"):
    np.testing.assert_array_equal(found[name], clean[name])
  for name in ("media", "media_mask"):
    assert not found[name][slots].any()
    np.testing.assert_array_equal(found[name][~slots], clean[name][~slots])
  assert faults_of(found) == {"broken_image": slots.sum()}


def test_a_record_that_is_damaged_after_planning_leaves_its_segment_empty_and_changes_nothing_else(
  stream, pairs, faults_of
):
  def flip_a_bit(folder):
    pair_lengths(open_shards(folder), whole.tokenizer)
    path = min(folder.glob("*.array_record"))
    data = bytearray(path.read_bytes())
    data[data.index(pairs[3].media[0]) + 50] ^= 1
    path.write_bytes(data)

  whole = stream(pairs, **AUGMENTED)
  clean = joined(take(whole, 6))
  found = joined(take(stream(pairs, spoil=flip_a_bit, **AUGMENTED), 6))
  tokens, slots = affected(whole, clean)
  for name in ("tokens", "loss_weights", "segments", "media_index"):
    np.testing.assert_array_equal(found[name], np.where(tokens, -1 if name == "media_index" else 0, clean[name]))
  for name in ("media", "media_mask"):
    assert not found[name][slots].any()
    np.testing.assert_array_equal(found[name][~slots], clean[name][~slots])
  assert faults_of(found) == {"damaged_shard": slots.sum()}


@pytest.mark.parametrize(
  ("changes", "cause"), [(dict(texts=("", " \n")), "empty_text"), (dict(texts=("3",), media=()), "bad_record")]
)
def test_a_record_that_cannot_be_used_takes_no_tokens_and_is_counted_once_an_epoch(
  stream, pairs, changes, cause, faults_of
):
  read = stream(spoiled(pairs, **changes), batch_size=1)
  epoch = joined(take(read, read.epoch_rows))
  assert sorted(numbers(read, epoch)) == [number for number in range(23) if number != 3]
  assert faults_of(epoch) == {cause: 1}


def test_the_row_is_as_full_as_the_longer_form_of_each_caption_allows(stream, pairs):
  """With or without the space that is drawn before it, a caption is never cut by its plan."""
  read = stream(pairs, batch_size=50)
  [batch] = take(read, 1)
  ends = {read.tokenizer.eos}
  starts = set()
  for row in range(50):
    for document in documents(batch, row):
      if len(document["tokens"]):
        assert int(document["tokens"][-1]) in ends
        starts.add(read.tokenizer.decode(document["tokens"])[0] == " ")
  assert starts == {True, False}


def test_lengths_are_counted_once_for_a_tokenizer_and_the_content(stream, pairs, monkeypatch, tmp_path):
  read = stream(pairs)
  expected = pair_lengths(read.sources.parts[0], read.tokenizer)
  forms = [[len(read.tokenizer.encode(space + p.texts[1].strip())) + 4 for p in pairs] for space in ("", " ")]
  assert expected.tolist() == np.max(forms, axis=0).tolist()
  counted = []
  monkeypatch.setattr(lengths_module, "count_lengths", lambda *_: counted.append(1) or expected)
  np.testing.assert_array_equal(pair_lengths(read.sources.parts[0], read.tokenizer), expected)
  assert not counted
  other = tmp_path / "tokenizer"
  other.mkdir()
  read.tokenizer.backend.save(str(other / "tokenizer.json"))
  text = (other / "tokenizer.json").read_text()
  (other / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'))
  pair_lengths(read.sources.parts[0], load_tokenizer(other))
  pair_lengths(stream(spoiled(pairs, texts=("", "3: other"))).sources.parts[0], read.tokenizer)
  assert len(counted) == 2


@pytest.mark.parametrize("prompt", ["Output:", "Question: {} Answer:"])
def test_prompts_have_room_and_lengths_of_their_own(stream, pairs, prompt):
  """A packed row holds each pair's prompt, and what is not usable under it takes no token."""
  asked = [dataclasses.replace(pair, texts=("what? " * (i % 3), pair.texts[1])) for i, pair in enumerate(pairs)]
  read = stream(asked, prompt=prompt, length=120, batch_size=1)
  plain, encode = pair_lengths(read.sources.parts[0], read.tokenizer), read.tokenizer.encode
  expected = []
  for question, answer in (map(str.strip, pair.texts) for pair in asked):
    before = prompt.replace("{}", question)
    learnt = answer if "{}" in prompt else f"{question} {answer}".strip()
    expected.append(len(encode(before)) + len(encode(" " + learnt)) + 4 if question or "{}" not in prompt else 0)
  found = pair_lengths(read.sources.parts[0], read.tokenizer, prompt)
  assert found.tolist() == expected != plain.tolist()
  epoch = joined(take(read, read.epoch_rows))
  documents_ = [each for row in range(read.epoch_rows) for each in documents(epoch, row) if len(each["tokens"])]
  assert sorted(len(each["tokens"]) for each in documents_) == sorted(filter(None, expected))


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: b"nonsense" + data])
def test_a_damaged_file_of_lengths_is_counted_again(stream, pairs, damage):
  read = stream(pairs)
  expected = pair_lengths(read.sources.parts[0], read.tokenizer)
  [path] = pathlib.Path(read.sources.parts[0].directory).glob("lengths-*.npy")
  whole = path.read_bytes()
  path.write_bytes(damage(whole))
  np.testing.assert_array_equal(pair_lengths(read.sources.parts[0], read.tokenizer), expected)
  assert path.read_bytes() == whole
  assert not list(path.parent.glob(".lengths-*"))


def test_shards_where_nobody_may_write_are_packed_all_the_same(stream, pairs, monkeypatch):
  def refuse(path, data):
    raise PermissionError(str(path))

  expected = joined(take(stream(pairs), 3))
  monkeypatch.setattr(lengths_module, "write_durably", refuse)
  read = stream(pairs)
  assert_equal(joined(take(read, 3)), expected)
  assert not list(read.sources.parts[0].directory.glob("*lengths*"))


@pytest.fixture(scope="module")
def losses(tokenizer):
  """A tiny Flamingo with open gates: a batch to the loss of each of its tokens but the first, float64 [B, L - 1]."""
  config = FlamingoConfig(
    vision=VitConfig(width=16, layers=1, heads=2, feed_forward_multiplier=2, image_size=SIZE, patch_size=4),
    resampler=PerceiverResamplerConfig(layers=1, latents=3, heads=2, feed_forward_multiplier=2, frames=1),
    cross_attention=GatedCrossAttentionConfig(every=1, heads=2, head_width=4, feed_forward_multiplier=2),
    language=DecoderConfig(
      vocabulary=tokenizer.vocabulary, width=16, layers=2, heads=4, key_value_heads=2, feed_forward_width=24
    ),
    dtype="float32",
  )
  random = np.random.default_rng(0)
  shapes = flat(jax.eval_shape(lambda key: initialize(config, key), jax.random.key(0)))
  parameters = nested({path: jax.numpy.float32(0.5 * random.normal(size=s.shape)) for path, s in shapes.items()})
  model = Flamingo(config)
  logits = jax.jit(functools.partial(model.apply, parameters))

  def losses(batch):
    scores = np.float64(logits({name: array for name, array in batch.items() if name != "faults"}))[:, :-1]
    right = np.take_along_axis(scores, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    return (np.log(np.exp(scores).sum(axis=-1)) - right) * batch["loss_weights"][:, 1:]

  return losses


def by_document(batch, losses):
  """The summed loss of each document, by its tokens."""
  found = losses(batch)
  sums = {}
  for row in range(len(batch["tokens"])):
    for slot, document in enumerate(documents(batch, row)):
      if len(document["tokens"]):
        sums[document["tokens"].tobytes()] = found[row][batch["segments"][row, 1:] == slot + 1].sum()
  np.testing.assert_allclose(sum(sums.values()), found.sum(), rtol=1e-6)  # nothing is learnt between documents
  return sums


def test_packed_pairs_have_the_loss_that_they_have_alone(stream, pairs, losses):
  read = stream(pairs, training=False, batch_size=1)
  packed = joined(take(read, read.epoch_rows))
  alone = joined([{name: array[None] for name, array in row.items()} for row in read.rows()])
  found, expected = by_document(packed, losses), by_document(alone, losses)
  assert len(packed["tokens"]) < len(alone["tokens"]) / 2
  assert len(found) == 23
  assert found == pytest.approx(expected, rel=1e-5)
  blind = by_document(packed | {"media_mask": np.zeros_like(packed["media_mask"])}, losses)
  assert all(abs(blind[key] - found[key]) > 1e-3 for key in found)  # so it tells which picture was seen


@pytest.mark.parametrize(
  ("changes", "fault"),
  [
    (dict(pack=True), None),
    (dict(pack=True, medium="video", frames=4), None),
    (dict(pack=True, layout="interleaved"), "streams.web.pack is True, but layout is 'interleaved'"),
    (dict(medium="features", frames=8), None),
    (dict(medium="features", flip=True), "streams.web.flip is True, but features"),
    (dict(medium="features", colour=0.1), "streams.web.colour is 0.1, but features"),
    (dict(medium="features", crop=0.5), "streams.web.crop is 0.5, but features"),
  ],
)
def test_a_stream_that_cannot_be_packed_or_changed_at_random_says_so(changes, fault):
  found = check_stream("web", StreamConfig(**dict(source="data", layout="pairs") | changes))
  assert len(found) == (fault is not None)
  assert all(line.startswith(fault) for line in found)


def faults(config):
  with pytest.raises(UserError) as error:
    read_experiment(config, "mine.py")
  return str(error.value).splitlines()


def test_packing_is_refused_where_a_pair_would_see_the_others_of_its_row():
  config = load_config("configs/tiny.py", {"streams.captions.pack": "True", "streams.captions.media": "4"})
  assert read_experiment(config, "mine.py").stream_configs["captions"].pack
  config["model"]["cross_attention"].update(previous_media=True, blind_sees_all=True)
  config["model"]["resampler"]["media"] = 4
  found = faults(config)
  assert all(line.startswith("mine.py: streams.captions.pack is True, but with model.") for line in found)
  assert [line.split(" with ")[1].split()[0] for line in found] == [
    "model.cross_attention.previous_media",
    "model.cross_attention.blind_sees_all",
    "model.resampler.media",
  ]


def test_contrastive_streams_are_never_packed():
  config = load_config("configs/quickstart_vision.py", {"streams.captions.pack": "True"})
  assert faults(config) == ["mine.py: streams.captions.pack is True; contrastive training matches one pair a row."]
