"""Each benchmark in miniature, in the layout of its official files, with two examples or so in each split."""

import csv
import json
import pathlib

ANSWERS = ["red", "red", "red", "red", "dark red", "maroon", "red", "red", "crimson", "red"]
IVQA_COLUMNS = ["video_id", "start", "end", "question", "answer1", "answer2", "answer3", "answer4", "answer5"]
NEXTQA_COLUMNS = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type"]
RAREACT_COLUMNS = ["id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation"]
KINETICS_COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]


def write(folder: pathlib.Path, name: str, content) -> None:
  """A file of any kind: JSON, or the text given."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def media(folder: pathlib.Path, *names: str) -> None:
  for name in names:
    write(folder, name, "pixels")


def table(folder: pathlib.Path, name: str, columns: list[str], rows: list[list]) -> None:
  with (folder / name).open("w", newline="") as file:
    csv.writer(file).writerows([columns, *rows])


def karpathy(name: str, filename, filepath=None) -> dict:
  """Karpathy's JSON, abridged: `filepath` is COCO's alone."""

  def image(number: int, split: str) -> dict:
    captions = [f"A cat {number}.", f"One cat, number {number}"]
    place = {"filepath": filepath(split)} if filepath else {}
    sentences = [dict(raw=caption, tokens=caption.lower().split(), imgid=number, sentid=0) for caption in captions]
    return place | dict(
      filename=filename(number, split), imgid=number, split=split, sentences=sentences, sentids=[0, 1]
    )

  splits = ["train", "train", "restval", "val", "test", "test"]
  return dict(dataset=name, images=[image(number, split) for number, split in enumerate(splits)])


def coco(folder: pathlib.Path) -> None:
  def part(split: str) -> str:
    return "train2014" if split == "train" else "val2014"

  def filename(number: int, split: str) -> str:
    return f"COCO_{part(split)}_{number:012d}.jpg"

  content = karpathy("coco", filename, part)
  write(folder, "dataset_coco.json", content)
  media(folder, *(f"{image['filepath']}/{image['filename']}" for image in content["images"]))


def flickr30k(folder: pathlib.Path) -> None:
  content = karpathy("flickr30k", lambda number, _: f"{number}.jpg")
  write(folder, "dataset_flickr30k.json", content)
  media(folder, *(f"flickr30k-images/{image['filename']}" for image in content["images"]))


def vatex(folder: pathlib.Path) -> None:
  def films(first: int) -> list[dict]:
    names = [f"film-{number:06d}_{10 * number:06d}_{10 * number + 10:06d}" for number in (first, first + 1)]
    media(folder, *(f"videos/{name}.mp4" for name in names))
    captions = [["A man skis.", " Someone skis down "], ["A dog runs.", "One dog"]]
    return [dict(videoID=name, enCap=each, chCap=["..."]) for name, each in zip(names, captions, strict=True)]

  write(folder, "vatex_training_v1.0.json", films(0))
  write(folder, "vatex_validation_v1.0.json", films(2))
  write(folder, "vatex_public_test_english_v1.1.json", films(4))


def youcook2(folder: pathlib.Path) -> None:
  def film(name: str, subset: str, suffix: str) -> dict:
    media(folder, f"raw_videos/{subset}/113/{name}{suffix}")
    steps = [dict(segment=[90, 102], id=0, sentence="chop the onions"), dict(segment=[114, 127], id=1, sentence="fry")]
    return dict(duration=241.6, subset=subset, recipe_type="113", annotations=steps, video_url=f"youtu.be/{name}")

  films = {
    "GLd3aX16zBg": film("GLd3aX16zBg", "training", ".mkv"),
    "xHr8X2Wpmno": film("xHr8X2Wpmno", "validation", ".mp4"),
  }
  write(folder, "youcookii_annotations_trainval.json", dict(database=films))


def questions_and_annotations(
  folder: pathlib.Path, questions: str, annotations: str | None, part: str, first: int
) -> None:
  rows = [dict(image_id=number, question="What colour?", question_id=10 * number + 1) for number in (first, first + 1)]
  write(folder, questions, dict(info={}, task_type="Open-Ended", data_subtype=part, license={}, questions=rows))
  media(folder, *(f"{part}/COCO_{part}_{number:012d}.jpg" for number in (first, first + 1)))
  answers = [dict(answer=answer, answer_confidence="yes", answer_id=place) for place, answer in enumerate(ANSWERS, 1)]
  given = [
    dict(row, question_type="what", answer_type="other", answers=answers, multiple_choice_answer="red") for row in rows
  ]
  if annotations:
    write(folder, annotations, dict(info={}, license={}, data_subtype=part, annotations=given))


def vqav2(folder: pathlib.Path) -> None:
  name = "v2_OpenEnded_mscoco_{}_questions.json"
  for place, part in enumerate(("train2014", "val2014")):
    questions_and_annotations(folder, name.format(part), f"v2_mscoco_{part}_annotations.json", part, 10 * place)
  questions_and_annotations(folder, name.format("test-dev2015"), None, "test2015", 50)


def okvqa(folder: pathlib.Path) -> None:
  for place, part in enumerate(("train2014", "val2014")):
    names = f"OpenEnded_mscoco_{part}_questions.json", f"mscoco_{part}_annotations.json"
    questions_and_annotations(folder, *names, part, 10 * place)


def textvqa(folder: pathlib.Path) -> None:
  for place, split in enumerate(("train", "val")):
    rows = [
      dict(question="what does it say?", image_id=f"{split}{number}", question_id=10 * place + number, answers=ANSWERS)
      for number in range(2)
    ]
    write(folder, f"TextVQA_0.5.1_{split}.json", dict(dataset_type=split, dataset_version="0.5.1", data=rows))
    media(folder, *(f"train_images/{row['image_id']}.jpg" for row in rows))


def vizwiz(folder: pathlib.Path) -> None:
  for split in ("train", "val", "test"):
    names = [f"VizWiz_{split}_{number:08d}.jpg" for number in range(2)]
    answers = [dict(answer=answer, answer_confidence="yes") for answer in ANSWERS]
    kept = {} if split == "test" else dict(answers=answers, answer_type="other", answerable=1)
    write(folder, f"Annotations/{split}.json", [dict(image=name, question="What is this? ") | kept for name in names])
    media(folder, *(f"{split}/{name}" for name in names))


def xu(folder: pathlib.Path, film: str) -> None:
  for place, split in enumerate(("train", "val", "test")):
    numbers = (2 * place + 1, 2 * place + 2)
    rows = [dict(answer="cat", id=number, question="what is playing?", video_id=number) for number in numbers]
    write(folder, f"{split}_qa.json", rows)
    media(folder, *(f"video/{film.format(number)}" for number in numbers))


def msvdqa(folder: pathlib.Path) -> None:
  xu(folder, "vid{}.avi")


def msrvttqa(folder: pathlib.Path) -> None:
  xu(folder, "video{}.mp4")


def ivqa(folder: pathlib.Path) -> None:
  for split in ("train", "val", "test"):
    rows = [
      [f"{split}{number}", 12, 22, "What is cut?", "onion", "onion", "red onion", "onion", ""] for number in (0, 1)
    ]
    table(folder, f"{split}.csv", IVQA_COLUMNS, rows)
    media(folder, *(f"video/{row[0]}.webm" for row in rows))


def nextqa(folder: pathlib.Path) -> None:
  films = {"4924794333": "1164/4924794333", "3747890905": "0000/3747890905"}
  write(folder, "map_vid_vidorID.json", films)
  media(folder, *(f"NExTVideo/{place}.mp4" for place in films.values()))
  write(folder, "stopwords.txt", "the\nto\n")
  for split in ("train", "val", "test"):
    rows = [
      ["4924794333", 1058, 640, 360, "is the baby old enough to converse", "no", 4, "DB"],
      ["3747890905", 1152, 640, 360, "how does the adult get rid of the residue", "uses the spoon", 8, "CH"],
    ]
    table(folder, f"{split}.csv", NEXTQA_COLUMNS, rows)
  write(folder, "add_reference_answer_test.json", {"3747890905": {"8": "with a spoon"}})


def star(folder: pathlib.Path) -> None:
  options = ["The clothes.", "The towel.", "The bag.", "The dish."]
  for split in ("train", "val", "test"):
    rows = [
      dict(
        question_id=f"Interaction_T1_{number}",
        question="Which object was tidied up by the person?",
        video_id="6H78U",
        start=11.1,
        end=19.6,
        question_program=[],
        choices=[dict(choice_id=place, choice=option, choice_program=[]) for place, option in enumerate(options)],
        situations={},
      )
      | ({} if split == "test" else dict(answer=options[number]))
      for number in (1, 2)
    ]
    write(folder, f"STAR_{split}.json", rows)
  media(folder, "Charades_v1_480/6H78U.mp4")


def visdial(folder: pathlib.Path) -> None:
  questions, answers = (
    ["is it sunny", "any people", "what colour is it"],
    [*(f"answer {number}" for number in range(100)), "yes"],
  )

  def dialog(name: int) -> dict:
    rounds = [dict(question=place, answer=place, gt_index=place, answer_options=list(range(100))) for place in range(3)]
    return dict(image_id=name, caption="a cat on a mat", dialog=rounds)

  for split, names in (("train", [1, 2]), ("val", [3, 4])):
    data = dict(questions=questions, answers=answers, dialogs=[dialog(name) for name in names])
    write(folder, f"visdial_1.0_{split}.json", dict(version="1.0", split=split, data=data))
  relevance = [1.0, 0.4] + [0.0] * 98
  dense = [dict(image_id=name, round_id=2, gt_relevance=relevance) for name in (3, 4)]
  write(folder, "visdial_1.0_val_dense_annotations.json", dense)
  media(folder, "train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000000002.jpg")
  media(folder, *(f"VisualDialog_val2018/VisualDialog_val2018_{name:012d}.jpg" for name in (3, 4)))


def hateful_memes(folder: pathlib.Path) -> None:
  for place, split in enumerate(("train", "dev_seen", "test_seen")):
    rows = [
      dict(id=f"{place}{number}", img=f"img/{place}{number}.png", label=number, text="nice <image> day")
      for number in (0, 1)
    ]
    write(folder, f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    media(folder, *(row["img"] for row in rows))


def rareact(folder: pathlib.Path) -> None:
  rows = [
    [0, "7frRY7aGwMU", 50, 60, 0, "wash", "orange", 0],
    [1, "7frRY7aGwMU", 60, 70, 1, "hammer", "phone", 1],
    [2, "TLMroVuZ_Nc", 20, 30, 0, "wash", "orange", 1],
  ]
  table(folder, "rareact.csv", RAREACT_COLUMNS, rows)
  media(folder, "rareact/7frRY7aGwMU.mp4", "rareact/TLMroVuZ_Nc.mp4")


def imagenet(folder: pathlib.Path) -> None:
  write(folder, "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
  rows = {"train": ["n01440764_1", "n01443537_2"], "val": ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"]}
  for split, names in rows.items():
    synsets = ["n01440764", "n01443537"]
    solution = [[name, f"{synset} 1 2 3 4 "] for name, synset in zip(names, synsets, strict=True)]
    table(folder, f"LOC_{split}_solution.csv", ["ImageId", "PredictionString"], solution)
    places = [f"{synset}/{name}" if split == "train" else name for name, synset in zip(names, synsets, strict=True)]
    media(folder, *(f"ILSVRC/Data/CLS-LOC/{split}/{place}.JPEG" for place in places))


def kinetics(folder: pathlib.Path) -> None:
  for file, split in (("train", "train"), ("validate", "val")):
    rows = [["zumba", "-5RT9hI8L2I", 15, 25, file], ["abseiling", "-0dUJQG1OKY", 2, 12, file]]
    table(folder, f"{file}.csv", KINETICS_COLUMNS, rows)
    media(folder, *(f"{split}/{name}_{start:06d}_{end:06d}.mp4" for _, name, start, end, _ in rows))


def pictures(folder: pathlib.Path) -> None:
  captions = ["A red square.", "A blue square.", "A red circle.", "A blue circle."]
  rows = [
    dict(
      id=f"{split}{number}",
      image=f"{split}/{number}.png",
      split=split,
      captions=[captions[number], "One shape"],
      candidates=captions,
      label=number,
      licence="CC0-1.0",
    )
    for split in ("train", "heldout")
    for number in (0, 1)
  ]
  write(folder, "captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  media(folder, *(row["image"] for row in rows))


def matching(folder: pathlib.Path) -> None:
  pictures(folder)


WRITERS = {
  writer.__name__: writer
  for writer in (
    *(coco, flickr30k, vatex, youcook2, vqav2, okvqa, textvqa, vizwiz, msvdqa, msrvttqa, ivqa, nextqa, star, visdial),
    *(hateful_memes, rareact, imagenet, kinetics, pictures, matching),
  )
}
