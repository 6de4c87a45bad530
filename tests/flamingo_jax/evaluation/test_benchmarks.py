import json
import pathlib

import numpy as np
import pytest
from miniatures import WRITERS, write

from flamingo_jax.errors import UserError
from flamingo_jax.evaluation.prompts import Medium, written
from flamingo_jax.evaluation.tasks import TASKS, draw_subsets, few_shot_prompt, read_split
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.evaluation.tasks.rareact import action, third_person
from flamingo_jax.evaluation.tasks.scoring import Resources
from flamingo_jax.evaluation.tasks.shots import candidates

PROMPTS = {  # of the support split's first example, completed; of RareAct, which has none, of a query
  "coco": "<image>Output: A cat 0.<EOC>",
  "flickr30k": "<image>Output: A cat 0.<EOC>",
  "vatex": "<image>Output: A man skis.<EOC>",
  "youcook2": "<image>Output: chop the onions<EOC>",
  "vqav2": "<image>Question: What colour? Answer: red<EOC>",
  "okvqa": "<image>Question: What colour? Answer: red<EOC>",
  "textvqa": "<image>Question: what does it say? Answer: red<EOC>",
  "vizwiz": "<image>Question: What is this? Answer: red<EOC>",
  "msvdqa": "<image>Question: what is playing? Answer: cat<EOC>",
  "msrvttqa": "<image>Question: what is playing? Answer: cat<EOC>",
  "ivqa": "<image>Question: What is cut? Answer: onion<EOC>",
  "nextqa": "<image>Question: is the baby old enough to converse Answer: no<EOC>",
  "star": "<image>Question: Which object was tidied up by the person? Answer: The towel.<EOC>",
  "visdial": "<image>a cat on a mat Question: is it sunny Answer: answer 0 Question: any people Answer: answer 1"
  " Question: what colour is it Answer: answer 2<EOC>",
  "hateful_memes": '<image>is an image with written: "nice \\<image> day" on it. Is it hateful? Answer: no<EOC>',
  "rareact": "<image>Caption:",
  "imagenet": "<image>Output: tench<EOC>",
  "kinetics": "<image>Output: zumba<EOC>",
  "pictures": "<image>Output: A red square.<EOC>",
  "matching": "<image>Output: A red square.<EOC>",
}
FIRST_MEDIUM = {
  "coco": "train2014/COCO_train2014_000000000000.jpg",
  "flickr30k": "flickr30k-images/0.jpg",
  "vatex": "videos/film-000000_000000_000010.mp4",
  "youcook2": ("raw_videos/training/113/GLd3aX16zBg.mkv", 90.0, 102.0),
  "vqav2": "train2014/COCO_train2014_000000000000.jpg",
  "okvqa": "train2014/COCO_train2014_000000000000.jpg",
  "textvqa": "train_images/train0.jpg",
  "vizwiz": "train/VizWiz_train_00000000.jpg",
  "msvdqa": "video/vid1.avi",
  "msrvttqa": "video/video1.mp4",
  "ivqa": ("video/train0.webm", 12.0, 22.0),
  "nextqa": "NExTVideo/1164/4924794333.mp4",
  "star": ("Charades_v1_480/6H78U.mp4", 11.1, 19.6),
  "visdial": "train2014/COCO_train2014_000000000001.jpg",
  "hateful_memes": "img/00.png",
  "rareact": ("rareact/7frRY7aGwMU.mp4", 50.0, 60.0),
  "imagenet": "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG",
  "kinetics": "train/-5RT9hI8L2I_000015_000025.mp4",
  "pictures": "train/0.png",
  "matching": "train/0.png",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("benchmarks")
  for name, writer in WRITERS.items():
    (root / name).mkdir()
    writer(root / name)
  return root


def support_of(name: str, folders: pathlib.Path):
  return read_split(name, folders / name, TASKS[name].support or "all").examples


def test_the_sixteen_benchmarks_two_of_classification_and_two_of_ones_own_pictures_are_there():
  assert set(TASKS) == set(WRITERS) == set(PROMPTS) and len(TASKS) == 20


@pytest.mark.parametrize("name", TASKS)
def test_official_files_become_the_papers_prompts(name, folders):
  support = support_of(name, folders)
  place, *span = FIRST_MEDIUM[name] if isinstance(FIRST_MEDIUM[name], tuple) else [FIRST_MEDIUM[name]]
  assert support[0].medium == Medium(str(folders / name / place), *span)
  [query, *_] = read_split(name, folders / name, TASKS[name].query).examples
  if name == "rareact":
    assert written(few_shot_prompt(name, query, [], shots=0)) == PROMPTS[name]
    return
  prompt = written(few_shot_prompt(name, query, [support[0]] * 4, shots=4))
  assert prompt.startswith(4 * PROMPTS[name] + "<image>") and prompt.endswith(("Answer:", "Output:"))


@pytest.mark.parametrize("name", TASKS)
def test_every_split_is_read_whole(name, folders):
  sizes = {("rareact", "all"): 3, ("coco", "restval"): 1, ("coco", "val"): 1, ("flickr30k", "val"): 1}
  for split in [split for split in TASKS[name].splits if "unseen" not in split]:
    examples = read_split(name, folders / name, split).examples
    assert len(examples) == sizes.get((name, split), 2)
    assert len({example.id for example in examples}) == len(examples)
    assert all(pathlib.Path(example.medium.path).is_file() for example in examples)


@pytest.mark.parametrize("name", TASKS)
def test_zero_shots_are_two_texts_for_open_ended_tasks_and_none_for_ranked_ones(name, folders):
  support = support_of(name, folders)
  texts = 0 if TASKS[name].ranked else 2
  prompt = written(few_shot_prompt(name, support[0], support[:texts], shots=0))
  assert prompt.count("<image>") - prompt.count("\\<image>") == 1 and prompt.count("<EOC>") == texts
  with pytest.raises(UserError, match=f"{name} needs {texts} support examples for 0 shots, but {texts + 1}"):
    few_shot_prompt(name, support[0], [support[0]] * (texts + 1), shots=0)


def test_a_dialogue_asks_the_round_that_is_rated(folders):
  example = read_split("visdial", folders / "visdial", "val").examples[0]
  assert (example.question, example.history) == ("any people", (("is it sunny", "answer 0"),))
  assert len(candidates(example)) == 100 and candidates(example)[1] == " answer 1" and example.label == 1
  assert example.relevance[:3] == (1.0, 0.4, 0.0)


def test_answers_that_are_kept_back_are_absent(folders):
  for name in ("vqav2", "vizwiz", "star"):
    example = read_split(name, folders / name, TASKS[name].query).examples[0]
    assert example.references == () and example.label is None
  with pytest.raises(UserError, match="Question 0 has no reference answer"):
    TASKS["vqav2"].score([example], ["red"], Resources(folders))
  with pytest.raises(UserError, match="right candidates of 1 examples are kept back"):
    TASKS["star"].score([example], [np.zeros(4)], Resources(folders))


def test_second_answers_of_nextqa_are_references_too(folders):
  examples = read_split("nextqa", folders / "nextqa", "test").examples
  assert [example.references for example in examples] == [("no",), ("uses the spoon", "with a spoon")]
  assert [example.kind for example in examples] == ["DB", "CH"]


def test_actions_are_in_words(folders):
  examples = read_split("rareact", folders / "rareact", "all").examples
  assert candidates(examples[0]) == (" a person washes an orange", " a person hammers a phone")
  verbs = {"cut": "cuts", "wash": "washes", "spray": "sprays", "carry": "carries", "unplug": "unplugs", "mix": "mixes"}
  assert {verb: third_person(verb) for verb in verbs} == verbs
  assert action("throw", "egg") == "a person throws an egg"


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"vqav2", "vizwiz", "star", "nextqa"}))
def test_right_predictions_score_all(name, folders):
  """Perfect rankings and answers give 1; captions that are a reference give more than others."""
  task = TASKS[name]
  examples = read_split(name, folders / name, task.query).examples
  if name == "visdial":
    predictions = [np.array(example.relevance) for example in examples]
  elif name == "rareact":
    predictions = [np.eye(2)[example.label] * (example.clip.annotation == 1) for example in examples]
  elif task.ranked:
    predictions = [np.eye(len(example.options))[example.label] for example in examples]
  else:
    predictions = [task.shot(example).completion for example in examples]
  score = task.score(examples, predictions, Resources(folders / name))
  if task.metric == "CIDEr":
    assert score.total > task.score(examples, ["nothing"] * len(examples), Resources(folders / name)).total
  else:
    assert score.total == 1


@pytest.mark.parametrize(
  ("name", "expected"), [("vqav2", (0, 1)), ("okvqa", (0, 1)), ("textvqa", (1, 1)), ("vizwiz", (1, 0))]
)
def test_where_annotators_agree_each_data_sets_own_script_decides(name, expected, folders):
  plain, with_article = (Example("question", Medium(""), (answer,) * 10) for answer in ("cat", "the cat"))
  scores = (TASKS[name].score([each], ["the cat"], Resources(folders)).total for each in (plain, with_article))
  assert tuple(scores) == expected


def test_wups_says_what_it_needs(folders):
  examples = read_split("nextqa", folders / "nextqa", "test").examples
  with pytest.raises(UserError, match="WUPS needs WordNet's database: name its folder"):
    TASKS["nextqa"].score(examples, ["no", "spoon"], Resources(folders / "nextqa"))


def test_limits_of_shots(folders):
  support = support_of("visdial", folders)
  with pytest.raises(UserError, match="visdial takes at most 16 shots, not 32"):
    few_shot_prompt("visdial", support[0], [support[0]] * 32, shots=32)
  with pytest.raises(UserError, match="rareact takes at most 0 shots"):
    few_shot_prompt("rareact", support[0], [support[0]] * 4, shots=4)


def numbered(count: int, classes: int) -> list[Example]:
  options = tuple(f"class {place}" for place in range(classes))
  return [Example(f"example {number}", Medium(""), options=options, label=number % classes) for number in range(count)]


def test_subsets_are_disjoint_and_of_the_papers_sizes():
  examples = numbered(6000, 1)
  subsets = draw_subsets("okvqa", examples, seed=0)
  parts = [subsets.support, subsets.development_support, subsets.development_queries]
  assert [len(part) for part in parts] == [2048, 2048, 1024]
  assert len({example.id for part in parts for example in part}) == 2048 + 2048 + 1024
  assert subsets == draw_subsets("okvqa", examples[::-1], seed=0) != draw_subsets("okvqa", examples, seed=1)
  assert draw_subsets("textvqa", examples, seed=0).development_queries == ()
  with pytest.raises(UserError, match="5120 examples are asked for, but there are 5000 to choose from"):
    draw_subsets("okvqa", examples[:5000], seed=0)


def test_subsets_of_classification_are_of_each_class():
  subsets = draw_subsets("imagenet", numbered(300, 3), seed=0)
  parts = [(subsets.support, 32), (subsets.development_support, 32), (subsets.development_queries, 10)]
  for part, size in parts:
    assert [sum(example.label == label for example in part) for label in range(3)] == [size] * 3
  assert len({example.id for part, _ in parts for example in part}) == 3 * 74


def own_pictures(folder: pathlib.Path, *changes: dict, lacking: str = "") -> None:
  """captions.jsonl of the miniature's first record, once for each of the changes, under another id."""
  WRITERS["pictures"](folder)
  first = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
  rows = [first | dict(id=str(number)) | change for number, change in enumerate(changes)]
  rows = [{field: value for field, value in row.items() if field != lacking} for row in rows]
  write(folder, "captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_candidates_are_needed_to_match_but_not_to_describe(tmp_path):
  own_pictures(tmp_path, {}, lacking="candidates")
  [example] = read_split("pictures", tmp_path, "train").examples
  assert (example.references, example.options, example.label) == (("A red square.", "One shape"), (), None)
  with pytest.raises(UserError, match="record 0 lacks 'candidates'"):
    read_split("matching", tmp_path, "train")


def test_all_faults_of_ones_own_pictures_are_told_together(tmp_path):
  changes = {
    "": {},
    "split 'test'; train or heldout is expected": dict(split="test"),
    "captions []; a list of texts is expected": dict(captions=[]),
    "captions 'A square.'; a list of texts is expected": dict(captions="A square."),
    "captions ['a', ' ']; a list of texts is expected": dict(captions=["a", " "]),
    "label 4; the place of a candidate is expected, 0 to 3": dict(label=4),
    "label True; the place of a candidate is expected": dict(label=True),
    "two candidates are 'a'": dict(candidates=["a", "a"], label=0),
    f"there is no {tmp_path / 'train' / 'no.png'}": dict(image="train/no.png"),
    "(0) has the id of record 0; ids must differ": dict(id="0", split="heldout"),
  }
  own_pictures(tmp_path, *changes.values())
  with pytest.raises(UserError) as error:
    read_split("pictures", tmp_path, "train")
  heading, *lines = str(error.value).splitlines()
  assert heading == f"{tmp_path / 'captions.jsonl'}: 9 faults."
  assert all(text in line for text, line in zip(list(changes)[1:], lines, strict=True))


def test_a_split_without_a_picture_is_a_fault(tmp_path):
  own_pictures(tmp_path, dict(split="heldout"))
  with pytest.raises(UserError, match="no record is of split 'train'"):
    read_split("pictures", tmp_path, "train")
  assert len(read_split("pictures", tmp_path, "heldout").examples) == 1


def test_films_that_vanished_are_told_but_pictures_must_be_there(folders, tmp_path):
  WRITERS["vatex"](tmp_path / "vatex")
  next((tmp_path / "vatex" / "videos").glob("film-000004*")).unlink()
  split = read_split("vatex", tmp_path / "vatex", "test")
  assert (len(split.examples), split.absent) == (1, ("film-000004_000040_000050",))
  WRITERS["okvqa"](tmp_path / "okvqa")
  (tmp_path / "okvqa" / "val2014" / "COCO_val2014_000000000010.jpg").unlink()
  with pytest.raises(UserError, match=r"record 0 \(101\): there is no .*COCO_val2014_000000000010.jpg"):
    read_split("okvqa", tmp_path / "okvqa", "val")


def test_no_film_at_all_is_a_fault(tmp_path):
  WRITERS["vatex"](tmp_path)
  for film in (tmp_path / "videos").iterdir():
    film.unlink()
  with pytest.raises(UserError, match="none of its 2 films is there"):
    read_split("vatex", tmp_path, "test")


def memes(folder: pathlib.Path, *rows) -> None:
  write(folder, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_faults_are_told_together_and_counted(tmp_path):
  WRITERS["hateful_memes"](tmp_path)
  good = dict(id="1", img="img/00.png", label=0, text="x")
  bad = [
    good,
    dict(good, id="2", label=2),
    dict(id="3", img="img/00.png", label=0),
    dict(good, id="4", img="img/no.png"),
    7,
  ]
  memes(tmp_path, good, *bad, *(dict(good, id=str(number), label=None) for number in range(10, 20)))
  with pytest.raises(UserError) as error:
    read_split("hateful_memes", tmp_path, "train")
  message = str(error.value)
  assert message.startswith(f"{tmp_path / 'train.jsonl'}: 15 faults.")
  assert "record 1 (1) has the id of record 0" in message
  assert "record 2 is not as documented (label 2; 0 or 1 is expected)" in message
  assert "record 3 lacks 'text'" in message
  assert f"record 4 (4): there is no {tmp_path}/img/no.png" in message
  assert "record 5 is not as documented" in message
  assert message.endswith("and 5 more")


@pytest.mark.parametrize(
  ("name", "file", "content", "expected"),
  [
    ("coco", "dataset_coco.json", "{", "not readable as JSON"),
    ("coco", "dataset_coco.json", {"pictures": []}, 'no list "images"'),
    ("coco", "dataset_coco.json", {"images": [{}]}, "record 0 lacks 'split'"),
    ("coco", "dataset_coco.json", {"images": []}, "it holds no examples"),
    ("vatex", "vatex_training_v1.0.json", [{"videoID": "a", "enCap": []}], r"record 0 \(a\) has no reference answer"),
    ("vatex", "vatex_training_v1.0.json", {}, "it holds no list"),
    ("youcook2", "youcookii_annotations_trainval.json", [], 'no object "database"'),
    ("youcook2", "youcookii_annotations_trainval.json", {"database": {"a": {}}}, "film a is not as documented"),
    ("vqav2", "v2_mscoco_train2014_annotations.json", {"annotations": [{}]}, "record 0 lacks 'question_id'"),
    ("vqav2", "v2_mscoco_train2014_annotations.json", {"annotations": []}, r"record 0 \(1\) has no reference answer"),
    ("hateful_memes", "train.jsonl", "{}\nno", "train.jsonl, line 2: not readable as JSON"),
    ("ivqa", "train.csv", "video_id,question\na,b\n", "the header lacks start, end, answer1"),
    ("nextqa", "map_vid_vidorID.json", {}, "record 0 lacks '4924794333'"),
    ("visdial", "visdial_1.0_train.json", {"data": []}, 'no object "data"'),
    (
      "rareact",
      "rareact.csv",
      "id,video_id,start,end,class_id,verb,noun,annotation\n0,a,0,1,1,cut,egg,1\n",
      "without gaps",
    ),
    ("imagenet", "LOC_synset_mapping.txt", "n01440764\n", "line 1 names no class"),
    ("pictures", "captions.jsonl", "{}", "record 0 lacks 'split'"),
    ("pictures", "captions.jsonl", '{"split": "train"}', "record 0 lacks 'image'"),
    ("pictures", "captions.jsonl", "{}\nno", "captions.jsonl, line 2: not readable as JSON"),
    ("pictures", "captions.jsonl", "", "it holds no examples"),
    ("star", "STAR_train.json", [{"question_id": "a", "choices": []}], "record 0 lacks 'video_id'"),
  ],
)
def test_broken_annotations_are_named(name, file, content, expected, tmp_path):
  WRITERS[name](tmp_path)
  write(tmp_path, file, content)
  with pytest.raises(UserError, match=expected) as error:
    read_split(name, tmp_path, TASKS[name].support or "all")
  assert file.split("/")[-1] in str(error.value) or name in ("vqav2", "nextqa")


def edited(path: pathlib.Path, field: str, value, part: str = "") -> None:
  """Puts something else into a field of a JSON file's first record."""
  content = json.loads(path.read_text())
  (content[part] if part else content)[0][field] = value
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ("name", "file", "part", "field", "value", "expected"),
  [
    ("msvdqa", "train_qa.json", "", "answer", 2, "record 0 is not as documented (2 where a text is expected)"),
    ("msvdqa", "train_qa.json", "", "answer", None, "(None where a text is expected)"),
    ("msvdqa", "train_qa.json", "", "question", 7, "record 0 is not as documented"),
    ("textvqa", "TextVQA_0.5.1_train.json", "data", "answers", ["red", 2], "(2 where a text is expected)"),
    ("textvqa", "TextVQA_0.5.1_train.json", "data", "answers", "yes", "('yes' where a list of texts is expected)"),
    ("okvqa", "mscoco_train2014_annotations.json", "annotations", "answers", [{"answer": 2}], "(2 where a text is"),
    ("vizwiz", "Annotations/train.json", "", "answers", [{"answer": None}], "(None where a text is expected)"),
    ("vatex", "vatex_training_v1.0.json", "", "enCap", "a cat", "('a cat' where a list of texts is expected)"),
    ("coco", "dataset_coco.json", "images", "sentences", [{"raw": 1}], "(1 where a text is expected)"),
    ("star", "STAR_train.json", "", "choices", [{"choice_id": 0, "choice": 5}], "record 0 is not as documented"),
  ],
)
def test_what_is_no_text_is_a_fault_of_its_record(name, file, part, field, value, expected, tmp_path):
  WRITERS[name](tmp_path)
  edited(tmp_path / file, field, value, part)
  with pytest.raises(UserError) as error:
    read_split(name, tmp_path, "train")
  assert str(error.value).startswith(f"{tmp_path / file}: 1 faults.") and expected in str(error.value)


def test_an_option_that_is_no_text_is_a_fault_of_its_record(tmp_path):
  WRITERS["star"](tmp_path)
  edited(tmp_path / "STAR_test.json", "choices", [{"choice_id": 0, "choice": 5}])
  with pytest.raises(UserError, match=r"record 0 is not as documented \(5 where a text is expected\)"):
    read_split("star", tmp_path, "test")


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("nextqa", "train.csv"),
    ("rareact", "rareact.csv"),
    ("kinetics", "train.csv"),
    ("imagenet", "LOC_train_solution.csv"),
  ],
)
def test_rows_of_too_few_or_too_many_cells_are_named_by_their_line(name, file, tmp_path):
  WRITERS[name](tmp_path)
  header, first, second, *more = (tmp_path / file).read_text().splitlines()
  short = first.rsplit(",", 1)[0]
  write(tmp_path, file, "\n".join([header, "", short, second + ",more", *more]))
  width = len(header.split(","))
  with pytest.raises(UserError) as error:
    read_split(name, tmp_path, TASKS[name].support or "all")
  assert str(error.value).splitlines() == [
    f"{tmp_path / file}: 2 faults.",
    f"  line 3 has {width - 1} cells; the header names {width} columns",
    f"  line 4 has {width + 1} cells; the header names {width} columns",
  ]


def test_annotations_of_other_questions_are_a_fault(tmp_path):
  WRITERS["okvqa"](tmp_path)
  path = tmp_path / "OpenEnded_mscoco_val2014_questions.json"
  content = json.loads(path.read_text())
  content["questions"] = content["questions"][:1]
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="1 questions that it answers are not in OpenEnded_mscoco_val2014_questions"):
    read_split("okvqa", tmp_path, "val")


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match="There is no benchmark 'cocoa'; there are coco, flickr30k"):
    read_split("cocoa", tmp_path, "test")
  with pytest.raises(UserError, match="coco has no split 'dev'; it has train, restval, val, test"):
    read_split("coco", tmp_path, "dev")
  with pytest.raises(UserError, match=r"there is no such folder; docs/evaluation\.md says what coco's holds"):
    read_split("coco", tmp_path / "none", "test")
  with pytest.raises(UserError, match=r"dataset_coco\.json: there is no such file\. It comes from Karpathy's"):
    read_split("coco", tmp_path, "test")
  with pytest.raises(UserError, match=r"captions\.jsonl: there is no such file\. It comes from `flamingo quickstart"):
    read_split("pictures", tmp_path, "heldout")
