import itertools
import pathlib
import warnings

import nltk
import numpy as np
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import FileSystemPathPointer
from nltk.translate.meteor_score import meteor_score

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.metrics.meteor import meteor
from flamingo_jax.evaluation.metrics.wordnet import WordNet, wu_palmer
from flamingo_jax.evaluation.metrics.words import words
from flamingo_jax.evaluation.metrics.wups import content_words, next_qa_wups, wups

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# Synsets: words, those above. Some have two ways up, of different lengths; verbs have roots of their own.
SYNSETS = {
  "n": [
    ("entity", ""),
    ("object thing", "entity"),
    ("living_thing", "object"),
    ("animal beast", "living_thing"),
    ("person", "living_thing"),
    ("pet", "object"),
    ("dog", "animal pet"),
    ("cat", "animal pet"),
    ("dog cad", "person"),
    ("worker", "person"),
    ("chef cook", "worker entity"),
    ("fireman", "worker person"),
    ("run running", "entity"),
    ("glass", "object"),
    ("spectacles glasses", "object"),
    ("goose", "animal"),
  ],
  "v": [("move go", ""), ("run", "move"), ("walk", "move"), ("jog run", "run"), ("eat", ""), ("dine", "eat")],
  "a": [("red reddish", ""), ("big large", "")],
  "r": [("quickly fast", "")],
}
EXCEPTIONS = {"n": "geese goose\n", "v": "ran run\n", "a": "", "r": ""}
LEXNAMES = "".join(f"{number:02d}\tfile{number}\t1\n" for number in range(45))


def write_wordnet(folder: pathlib.Path) -> None:
  """WordNet's database format (wndb(5)): an offset is the byte at which a data file's line begins."""
  for part, kind in FILES.items():
    synsets = SYNSETS[part]
    names = [each.split()[0] for each, _ in synsets]
    offsets = [0] * len(synsets)
    for _ in range(2):  # the second time the offsets, of eight digits always, are known
      lines, place = [], len("  1 licence\n")
      for number, (each, above) in enumerate(synsets):
        offsets[number] = place
        pointers = [f"@ {offsets[names.index(name)]:08d} {part} 0000" for name in above.split()]
        fields = [f"{place:08d} 00 {part} {len(each.split()):02x}", *(f"{word} 0" for word in each.split())]
        frames = ["00"] if part == "v" else []
        lines.append(" ".join([*fields, f"{len(pointers):03d}", *pointers, *frames]) + " | a gloss  \n")
        place += len(lines[-1])
    (folder / f"data.{kind}").write_text("  1 licence\n" + "".join(lines))
    index = {}
    for number, (each, _) in enumerate(synsets):
      for word in each.split():
        index.setdefault(word, []).append(f"{offsets[number]:08d}")
    rows = [f"{word} {part} {len(of)} 1 @ {len(of)} 0 {' '.join(of)}  \n" for word, of in sorted(index.items())]
    (folder / f"index.{kind}").write_text("  1 licence\n" + "".join(rows))
    (folder / f"{kind}.exc").write_text(EXCEPTIONS[part])
  (folder / "lexnames").write_text(LEXNAMES)  # which NLTK reads, and Debian's package lacks


class Reader(WordNetCorpusReader):
  """NLTK's reader without its maps between versions, for which it wants files of other ones."""

  def map_wn(self, *_):
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wordnet")
  write_wordnet(folder)
  return folder


@pytest.fixture(scope="module")
def reference(folder):
  with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    patch.setattr(nltk.data, "path", [str(folder)])
    yield Reader(FileSystemPathPointer(str(folder)), None)


@pytest.fixture(scope="module")
def wordnet(folder):
  return WordNet(folder)


VOCABULARY = sorted({word for each in SYNSETS.values() for group, _ in each for word in group.split()})
FORMS = ["dogs", "Dog", "geese", "ran", "running", "glasses", "walked", "eating", "redder", "foxes", "nothing"]


def test_senses_are_nltks(wordnet, reference):
  for word in VOCABULARY + FORMS:
    expected = [(sense.name(), tuple(lemma.name() for lemma in sense.lemmas())) for sense in reference.synsets(word)]
    assert [(sense.name, sense.words) for sense in wordnet.senses(word)] == expected, word


def test_wu_palmer_similarity_is_nltks(wordnet, reference):
  values = set()
  for first, second in itertools.product(VOCABULARY, repeat=2):
    pairs = itertools.product(reference.synsets(first), reference.synsets(second))
    ours = itertools.product(wordnet.senses(first), wordnet.senses(second))
    for (one, other), mine in zip(pairs, ours, strict=True):
      expected = one.wup_similarity(other) or 0.0
      assert wu_palmer(*mine) == pytest.approx(expected, abs=1e-12), (one, other)
      values.add(round(expected, 6))
  assert len(values) > 10


def test_wups_follows_nextqas_script(wordnet, reference):
  """Its rules over NLTK's similarity of first senses."""

  def similarity(first, second, threshold):
    senses, others = reference.synsets(first), reference.synsets(second)
    if first == second:
      return 1.0
    value = (senses[0].wup_similarity(others[0]) or 0.0) if senses and others else 0.0
    return value if value >= threshold else 0.1 * value

  def one_way(these, those, threshold):
    best = [max([similarity(word, other, threshold) for other in those] or [0]) for word in these]
    best = [value for value in best if value != 0]
    return np.prod(best) if best else 0.0

  generator = np.random.default_rng(0)
  pool = [*VOCABULARY, "unknown", "zebra"]
  for _ in range(200):
    first, second = (generator.choice(pool, generator.integers(0, 4)).tolist() for _ in range(2))
    for threshold in (0.0, 0.9):
      expected = min(one_way(first, second, threshold), one_way(second, first, threshold))
      assert wups(first, second, wordnet, threshold) == pytest.approx(expected, abs=1e-12)


def test_counts_and_yes_or_no_must_be_the_same(wordnet):
  score = next_qa_wups(
    ["dog", "the dogs", "cats", "fireman"],
    [["cat"], ["dog"], ["dog", "a cat"], ["chef", "cook"]],
    ["DC", "DB", "CW", "TP"],
    wordnet,
    frozenset(["the", "a"]),
  )
  fireman, chef = wordnet.senses("fireman")[0], wordnet.senses("chef")[0]
  np.testing.assert_allclose(score.per_example, [0, 1, 1, wu_palmer(fireman, chef)])


def test_content_words_are_base_forms_without_stop_words(wordnet):
  assert content_words("The geese RAN to the dogs' glasses.", wordnet, frozenset(["the", "to"])) == [
    *("goose", "run", "dog", "glass")
  ]


def test_meteor_is_nltks_over_the_same_wordnet(wordnet, reference):
  captions = ["A dog runs fast.", "the chef walks", "zebras", "beasts and cats ran"]
  references = [["the dog is running quickly", "a cad runs"], ["a cook walked"], ["nothing"], ["animal cat run", "x"]]
  expected = [
    meteor_score([words(one) for one in each], words(caption), wordnet=reference)
    for caption, each in zip(captions, references, strict=True)
  ]
  score = meteor(captions, references, wordnet)
  np.testing.assert_allclose(score.per_example, expected, atol=1e-12)
  assert score.per_example[2] == 0 < score.total


def test_a_folder_without_wordnet_is_named(tmp_path):
  with pytest.raises(UserError, match=r"lacks index\.noun, data\.noun, noun\.exc and more\. Name the folder `dict`"):
    WordNet(tmp_path)
