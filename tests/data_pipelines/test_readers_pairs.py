"""Every layout of captioned pictures, from files as they are found to shards and back."""

import base64
import csv
import gzip
import io
import itertools
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.build.readers.webdataset import places
from data_pipelines.build.settings import Columns
from flamingo_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
  (tmp_path / "in").mkdir()
  return tmp_path / "in"


def captions(examples) -> list[str]:
  assert all(len(example.media) == 1 and example.texts[0] == "" for example in examples)
  return [example.texts[1] for example in examples]


# WebDataset


def write_tar(path, members: dict[str, bytes], mode: str = "w") -> None:
  with tarfile.open(path, mode) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("name", "mode"), [("00000.tar", "w"), ("pax.tar", "w:gz")])
def test_a_webdataset_sample_is_a_pair(built, root, picture, name, mode):
  about = {"url": "https://x.org/b.jpg", "caption": "from the JSON file", "license": "CC0-1.0", "similarity": 0.3}
  members = {
    "0/a.png": picture(1),
    "0/a.txt": b"A cat.\n",
    "0/a.json": json.dumps(about).encode(),
    "0/b.JPG": picture(2, format="JPEG"),
    "0/b.json": json.dumps(about).encode(),
    "1/b.seg.png": picture(3),  # "seg.png" is no picture's suffix, as WebDataset reads names
    "1/b.webp": picture(4, format="WEBP"),
    "1/b.txt": "Of another folder: ünïcode.".encode(),
  }
  write_tar(root / name, members, mode)
  _, examples = built("pairs", root, license="mixed")
  assert captions(examples) == ["A cat.", "from the JSON file", "Of another folder: ünïcode."]
  assert [example.media[0] for example in examples] == [picture(1), members["0/b.JPG"], members["1/b.webp"]]
  assert [example.source for example in examples] == [f"mine/{name}/{key}" for key in ("0/a", "0/b", "1/b")]
  assert [example.license for example in examples] == ["CC0-1.0", "CC0-1.0", "mixed"]


def test_tables_that_stand_beside_tars_are_not_read_again(built, root, picture):
  """img2dataset leaves a Parquet file and a JSON file of statistics beside each tar."""
  write_tar(root / "00000.tar", {"a.png": picture(), "a.txt": b"A cat."})
  table = pyarrow.Table.from_pylist([{"url": "https://x.org/a.png", "caption": "A cat."}])
  pyarrow.parquet.write_table(table, root / "00000.parquet")
  (root / "00000_stats.json").write_text('{"count": 1}')
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."] and manifest["read"]["documents"] == 1


def test_members_that_climb_out_of_their_folder_are_named(built, root, tmp_path, picture):
  with tarfile.open(root / "bad.tar", "w") as tar:
    for name in ("../a.png", "/etc/b.png", "x/../../c.png", "good.png", "good.txt"):
      data = picture() if name.endswith("png") else b"A cat."
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
    link = tarfile.TarInfo("d.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(link)
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."]
  assert [error["record"] for error in manifest["errors"]["outside_folder"]["records"]] == [
    "bad.tar/../a.png", "bad.tar//etc/b.png", "bad.tar/x/../../c.png", "bad.tar/d.png",
  ]  # fmt: skip


def test_a_sample_with_damaged_json_hides_no_other_picture_of_its_archive(root, picture):
  about = json.dumps({"url": "https://a.org/b.png"}).encode()
  members = {"a.png": picture(1), "a.json": b"{", "b.png": picture(2), "b.json": about}
  write_tar(root / "00000.tar", members)
  data = (root / "00000.tar").read_bytes()
  found = {address: data[offset : offset + size] for address, offset, size in places(root / "00000.tar")}
  assert found == {"a.png": picture(1), "b.png": picture(2), "https://a.org/b.png": picture(2)}


@pytest.mark.parametrize("suffixes", [("png", "txt", "json"), ("json", "png", "txt"), ("json", "txt", "png")])
def test_a_picture_of_an_archive_is_found_by_its_url_wherever_the_json_file_stands(root, picture, suffixes):
  members = {}
  for key in (0, 1):
    about = json.dumps({"url": f"https://x.org/{key}.png"}).encode()
    sample = {"png": picture(key), "txt": b"A cat.", "json": about}
    members |= {f"{key}.{suffix}": sample[suffix] for suffix in suffixes}
  write_tar(root / "00000.tar", members | {"2.png": picture(2)})
  data = (root / "00000.tar").read_bytes()
  found = [(address, data[offset : offset + size]) for address, offset, size in places(root / "00000.tar")]
  by_name = [(f"{key}.png", picture(key)) for key in (0, 1, 2)]
  assert sorted(found) == by_name + [(f"https://x.org/{key}.png", picture(key)) for key in (0, 1)]


def test_what_is_wrong_with_a_tar_is_named(built, root, picture):
  write_tar(root / "cut.tar", {"a.png": picture(1), "a.txt": b"A cat.", "b.png": picture(2), "b.txt": b"A dog."})
  data = (root / "cut.tar").read_bytes()
  (root / "cut.tar").write_bytes(data[: data.index(b"b.png") + 5000])
  (root / "empty.tar").write_bytes(b"")
  write_tar(root / "texts.tar", {"a.txt": b"no picture", "b.png": picture(3), "b.txt": b"\xff\xfe", "c.json": b"[1]"})
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."]
  assert {cause: found["count"] for cause, found in manifest["errors"].items()} == {"bad_document": 3, "broken_file": 2}
  assert {error["record"] for error in manifest["errors"]["broken_file"]["records"]} == {"cut.tar", "empty.tar"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_with_a_damaged_header_in_its_midst_does_not_just_end_there(built, root, picture, pack):
  write_tar(root / "a.tar", {"a.png": picture(1), "a.txt": b"A cat.", "b.png": picture(2), "b.txt": b"A dog."})
  data = (root / "a.tar").read_bytes()
  (root / "a.tar").write_bytes(pack(data.replace(b"b.png", b"\xff" * 5)))
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."]
  [error] = manifest["errors"]["broken_file"]["records"]
  assert error["record"] == "a.tar" and error["detail"].startswith("no header of a member: ")


def looked_up(root, picture) -> None:
  """A table whose two pictures lie in kept/a.tar beside its folder, 100.png behind 000.png."""
  (root / "rows.jsonl").write_text("\n".join(json.dumps({"url": f"{n}00.png", "caption": f"Text {n}."}) for n in "01"))
  (root.parent / "kept").mkdir()
  write_tar(root.parent / "kept" / "a.tar", {"000.png": picture(0), "100.png": picture(1)})


def cut(tar: bytes) -> bytes:
  return tar[: tar.index(b"100.png") + 2000]


def overwrite(tar: bytes) -> bytes:
  return tar.replace(b"100.png", b"\xff" * 7)  # so that the header's checksum is wrong


@pytest.mark.parametrize(("damage", "workers"), [(cut, 2), (overwrite, 1), (gzip.compress, 1), (bytes, 1)])
def test_a_damaged_tar_of_pictures_is_named_once(built, root, picture, damage, workers):
  looked_up(root, picture)
  path = root.parent / "kept" / "a.tar"
  path.write_bytes(damage(path.read_bytes()))
  (root / "more.jsonl").write_text(json.dumps({"image": base64.b64encode(picture(2)).decode(), "caption": "Text 2."}))
  manifest, examples = built("pairs", root, pictures=str(path.parent), workers=workers)
  if damage is bytes:
    assert len(examples) == 3 and not manifest["errors"]
  else:
    [error] = manifest["errors"]["broken_file"]["records"]
    assert error["record"] == str(path) and error["detail"].startswith("as an uncompressed tar: ")
    assert manifest["dropped"]["documents"]["broken_file"] == 1
  assert manifest["read"]["documents"] == len(examples) + sum(manifest["dropped"]["documents"].values())


def test_a_damaged_tar_of_pictures_counts_among_what_is_broken(built, root, picture):
  looked_up(root, picture)
  path = root.parent / "kept" / "a.tar"
  path.write_bytes(overwrite(path.read_bytes()))
  with pytest.raises(UserError, match=r"broken_file: 1, such as .*/kept/a.tar \(as an uncompressed tar: no header"):
    built("pairs", root, pictures=str(path.parent), most_errors=0.01)
  assert not list((root.parent / "out").glob("*.array_record"))


def test_a_folder_that_is_called_a_tar_is_no_archive(built, root, picture):
  looked_up(root, picture)
  (root.parent / "kept" / "old.tar").mkdir()
  _, examples = built("pairs", root, pictures=str(root.parent / "kept"))
  assert len(examples) == 2


def test_a_link_to_a_tar_that_is_gone_is_named(built, root, picture):
  looked_up(root, picture)
  (root.parent / "kept" / "x.tar").symlink_to("/gone/x.tar")
  with pytest.raises(UserError, match=r"^--pictures: .*/kept/x.tar is a link to /gone/x.tar, which is not there"):
    built("pairs", root, pictures=str(root.parent / "kept"))


# Tables


def rows_of(picture, root) -> list[dict]:
  (root / "one.jpg").write_bytes(picture(1, format="JPEG"))
  return [
    {"image": "one.jpg", "caption": 'A "cat",\non two lines', "license": "CC0-1.0"},
    {"image": base64.b64encode(picture(2, format="JPEG")).decode(), "caption": "In base64", "license": None},
    {"image": f"data:image/png;base64,{base64.b64encode(picture(3)).decode()}", "caption": "Inside", "license": "?"},
  ]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_row_is_a_pair(built, root, picture, form):
  rows, path = rows_of(picture, root), root / f"table.{form}"
  if form == "parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
  elif form == "jsonl":
    path.write_text("\n".join(map(json.dumps, rows)))
  else:
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a byte order mark, as spreadsheets write it
      writer = csv.DictWriter(file, rows[0], delimiter="\t" if form == "tsv" else ",")
      writer.writeheader()
      writer.writerows(rows)
  _, examples = built("pairs", path, license="mixed", documents_per_shard=2)
  assert captions(examples) == ['A "cat",\non two lines', "In base64", "Inside"]
  assert [example.media[0] for example in examples] == [
    picture(1, format="JPEG"), picture(2, format="JPEG"), picture(3),
  ]  # fmt: skip
  assert [example.license for example in examples] == ["CC0-1.0", "mixed", "mixed"]


def test_laion_is_read_with_pictures_by_their_urls(built, root, tmp_path, picture):
  rows = [
    {"URL": "https://x.org/1.png", "TEXT": "One", "similarity": 0.31, "LICENSE": "?", "NSFW": "UNLIKELY"},
    {"URL": "https://x.org/2.png", "TEXT": "Two", "similarity": 0.2, "LICENSE": "?", "NSFW": "UNLIKELY"},
    {"URL": "https://x.org/3.png", "TEXT": "Three", "similarity": 0.5, "LICENSE": "?", "NSFW": "UNLIKELY"},
  ]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "part-00000.snappy.parquet")
  (tmp_path / "kept").mkdir()
  found = {"a.png": picture(1), "a.json": b'{"url": "https://x.org/1.png"}'}
  found |= {"b.png": picture(2), "b.json": b'{"url": "https://x.org/2.png"}'}
  write_tar(tmp_path / "kept" / "downloads.tar", found)
  manifest, examples = built("pairs", root, pictures=str(tmp_path / "kept"), minimum_similarity=0.3)
  assert captions(examples) == ["One"] and examples[0].media == (picture(1),)
  assert manifest["dropped"]["documents"] == {"remote": 1, "similarity": 1}


def test_hugging_face_tables_hold_bytes_and_several_captions(built, root, picture):
  rows = [{"photo": {"bytes": picture(), "path": "a.png"}, "sentences": ["A cat.", "A pet."]}]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet")
  _, examples = built("pairs", root, columns=Columns(picture="photo", text="sentences"))
  assert captions(examples) == ["A cat.", "A pet."]


def test_a_row_without_captions_is_dropped_as_one_with_an_empty_caption_is(built, root, picture):
  (root / "a.png").write_bytes(picture())
  rows = [dict(image="a.png", caption=caption) for caption in ([], "", ["A cat."])]
  (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."]
  assert manifest["read"] == {"documents": 3, "media": 3}
  assert manifest["dropped"] == {"documents": {"empty_text": 2}, "media": {"with_document": 2}}


def test_questions_stand_before_their_picture_and_each_answer_is_a_pair(built, root, picture):
  (root / "a.png").write_bytes(picture())
  rows = [
    dict(image="a.png", question=" What is it? ", answer=["a cat", "a pet"]),
    dict(image="a.png", question="Where?", answer="on a mat"),
    dict(image="a.png", question=" ", answer="nobody asked"),
    dict(image="a.png", answer="nobody asked"),
  ]
  (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  manifest, examples = built("pairs", root, columns=Columns(text="answer", question="question"))
  assert [example.texts for example in examples] == [
    ("What is it?", "a cat"),
    ("What is it?", "a pet"),
    ("Where?", "on a mat"),
  ]
  assert [record["detail"] for record in manifest["errors"]["bad_document"]["records"]] == [
    "no question among its fields image, question, answer",
    "no question among its fields image, answer",
  ]


def test_rows_that_lack_something_are_named_with_their_fields(built, root, picture):
  (root / "a.png").write_bytes(picture())
  lines = [
    '{"image": "a.png", "caption": "A cat."}',
    '{"image": "a.png", "words": "A cat."}',
    '{"photo": "a.png", "caption": "A cat."}',
    '{"image": "a.png", "caption": 5}',
    '{"image": "a.png", ',
    '{"image": "../secret.png", "caption": "A way out"}',
    '{"image": "gone.png", "caption": "Gone"}',
  ]
  (root / "rows.jsonl").write_text("\n".join(lines))
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat."]
  bad = manifest["errors"]["bad_document"]
  assert bad["count"] == 4
  assert bad["records"][0]["detail"] == "no caption among its fields image, words"
  assert bad["records"][1]["detail"] == "no picture among its fields photo, caption"
  assert manifest["errors"]["outside_folder"]["count"] == 1 and manifest["dropped"]["media"]["missing"] == 1


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("a.parquet", b"PAR1 but not really"),
    ("a.jsonl.gz", b"\x1f\x8b\x08 cut"),
    ("a.jsonl.zip", b"PK\x03\x04 cut"),
    ("a.json", b'{"images": '),
  ],
)
def test_a_file_that_is_not_what_it_is_called_is_named(built, root, name, data):
  (root / name).write_bytes(data)
  with pytest.raises(UserError, match=rf"1 of 1 documents and media are broken(?s:.*)broken_file: 1, such as {name}"):
    built("pairs", root, most_errors=0.01)


def test_csv_records_of_another_width_or_encoding_are_named(built, root, picture):
  (root / "a.png").write_bytes(picture())
  (root / "a.csv").write_bytes(b"image,caption\na.png,A cat\na.png\na.png,\xff\xfe\na.png,A,B\n\na.png,A dog\n")
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["A cat", "A dog"]
  details = [error["detail"] for error in manifest["errors"]["bad_document"]["records"]]
  assert details == ["1 fields for 2 columns", "not UTF-8", "3 fields for 2 columns"]


# COCO


def test_coco_has_a_pair_for_each_annotation(built, root, picture):
  for folder in ("annotations", "train2017"):
    (root / folder).mkdir()
  (root / "train2017" / "1.jpg").write_bytes(picture(1, format="JPEG"))
  (root / "train2017" / "2.jpg").write_bytes(picture(2, format="JPEG"))
  content = {
    "images": [{"id": 7, "file_name": "1.jpg", "license": 3}, {"id": 8, "file_name": "2.jpg", "license": 4}],
    "licenses": [{"id": 3, "name": "Attribution", "url": "https://c.org/by/2.0/"}],
    "annotations": [
      {"id": 1, "image_id": 8, "caption": " A dog. "},
      {"id": 2, "image_id": 7, "caption": "A cat."},
      {"id": 3, "image_id": 7, "caption": "A pet."},
      {"id": 4, "image_id": 9, "caption": "Nothing."},
    ],
  }
  (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
  (root / "annotations" / "instances.json").write_text('{"categories": []}')  # not of captions: passed over
  manifest, examples = built("pairs", root, documents_per_shard=2)
  assert captions(examples) == ["A dog.", "A cat.", "A pet."]
  assert examples[1].media == (picture(1, format="JPEG"),)
  assert [example.license for example in examples] == ["unknown", "https://c.org/by/2.0/", "https://c.org/by/2.0/"]
  assert manifest["errors"]["bad_document"]["count"] == 1


def write_coco(path, caption: str, file_name: str = "1.png") -> None:
  images, annotations = [dict(id=1, file_name=file_name)], [dict(image_id=1, caption=caption)]
  path.write_text(json.dumps(dict(images=images, annotations=annotations)))


@pytest.mark.parametrize("folders", [("train", "val"), ("train2017", "val2017")])
def test_coco_pictures_of_one_name_are_those_of_the_folder_that_the_json_names(built, root, picture, folders):
  (root / "annotations").mkdir()
  for number, folder in enumerate(folders):
    (root / folder).mkdir()
    (root / folder / "1.png").write_bytes(picture(number))
    write_coco(root / "annotations" / f"captions_{folder}.json", f"one of {folder}")
  _, examples = built("pairs", root)
  assert [(example.texts[1], example.media[0]) for example in examples] == [
    (f"one of {folder}", picture(number)) for number, folder in enumerate(folders)
  ]


def test_coco_pictures_of_one_name_that_no_json_tells_apart_are_ambiguous(built, root, picture):
  for number, folder in enumerate(["a", "b", "c"]):
    (root / folder).mkdir()
    (root / folder / "1.png").write_bytes(picture(number))
    (root / folder / "2.png").write_bytes(picture(2))  # the same everywhere
  write_coco(root / "captions.json", "the first", "1.png")
  write_coco(root / "others.json", "the second", "2.png")
  manifest, examples = built("pairs", root)
  assert captions(examples) == ["the second"]
  [error] = manifest["errors"]["bad_document"]["records"]
  assert error["detail"] == "1.png is ambiguous: a/1.png and b/1.png and c/1.png are different files"


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A builder with its data, prepared; six examples of one picture and two captions."""
  folder = tmp_path_factory.mktemp("tfds")
  pixels = np.random.default_rng(0).integers(0, 256, (6, 70, 80, 3), np.uint8)
  features = tfds.features.FeaturesDict(
    {
      "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
      "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
      "rights": tfds.features.Text(),
      "remarks": tfds.features.Sequence(tfds.features.Text()),
      "kind": tfds.features.ClassLabel(names=["tabby", "siamese"]),
      "views": tfds.features.Sequence(tfds.features.Image(shape=(70, 80, 3))),
    }
  )
  version, lengths = folder / "cats" / "1.0.0", (4, 2)
  version.mkdir(parents=True)
  numbers = iter(range(6))
  for shard, length in enumerate(lengths):
    with tf.io.TFRecordWriter(str(version / f"cats-train.tfrecord-{shard:05d}-of-00002")) as writer:
      for number in itertools.islice(numbers, length):
        texts = [f"cat {number}", f"pet {number}"]
        example = {"photo": pixels[number], "captions": {"text": texts}, "rights": "CC0-1.0", "views": pixels[:2]}
        example["remarks"] = ["a good cat"][: number % 2]
        example["kind"] = number % 2 if number < 5 else -1  # as TFDS says that it is not known
        writer.write(features.serialize_example(features.encode_example(example)))
  template = tfds.core.ShardedFileTemplate(data_dir=version, dataset_name="cats", filetype_suffix="tfrecord")
  split = tfds.core.SplitInfo(name="train", shard_lengths=list(lengths), num_bytes=0, filename_template=template)
  tfds.folder_dataset.write_metadata(data_dir=version, features=features, split_infos=[split])
  return folder, pixels


FIELDS = Columns(picture="photo", text="captions/text", license="rights")


def test_a_tfds_builder_is_read_in_its_order(built, prepared):
  folder, pixels = prepared
  _, examples = built("pairs", folder, tfds="cats", columns=FIELDS, documents_per_shard=4)
  assert captions(examples) == [f"{name} {number}" for number in range(6) for name in ("cat", "pet")]
  shown = [np.asarray(Image.open(io.BytesIO(example.media[0]))) for example in examples]
  assert all((shown[at] == pixels[at // 2]).all() for at in range(12))
  assert {example.license for example in examples} == {"CC0-1.0"}


def test_classes_of_a_tfds_builder_are_read_as_their_names(built, prepared):
  manifest, examples = built("pairs", prepared[0], tfds="cats", columns=Columns("photo", "kind", "kind"))
  assert captions(examples) == ["tabby", "siamese", "tabby", "siamese", "tabby"]
  assert [example.license for example in examples] == captions(examples)
  [error] = manifest["errors"]["bad_document"]["records"]
  assert error["record"] == "cats, train 5"


def test_an_example_of_a_tfds_builder_without_texts_is_dropped_as_one_with_an_empty_text_is(built, prepared):
  manifest, examples = built("pairs", prepared[0], tfds="cats", columns=Columns("photo", "remarks"))
  assert captions(examples) == ["a good cat"] * 3
  assert manifest["dropped"] == {"documents": {"empty_text": 3}, "media": {"with_document": 3}}


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    (Columns("kind", "captions/text"), r"--picture-column: the field 'kind' of cats is no picture, but ClassLabel"),
    (Columns("rights", "captions/text"), r"--picture-column: the field 'rights' of cats is no picture, but Text"),
    (Columns("views", "captions/text"), r"--picture-column: .* is no picture, but several of Image"),
    (Columns("photo", "photo"), r"--text-column: the field 'photo' of cats is no text, but Image"),
    (Columns("photo", "captions"), r"--text-column: the field 'captions' of cats is no text, but several of"),
    (Columns("photo", "rights", "captions/text"), r"--licence-column: .* is no licence, but several of Text"),
  ],
)
def test_a_field_of_another_kind_is_refused_by_name(built, prepared, columns, message):
  with pytest.raises(UserError, match=message):
    built("pairs", prepared[0], tfds="cats", columns=columns)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(tfds="dogs", columns=FIELDS), r"--tfds: dogs is not prepared in"),
    (dict(tfds="cats", columns=FIELDS, split="test"), r"--split: cats has no test, but train"),
    (dict(tfds="cats", columns=Columns("image", "captions/text")), r"--picture-column: cats has no field 'image'"),
    (dict(tfds="cats", columns=Columns("photo", "captions/words")), r"--text-column: cats has no field"),
    (dict(tfds="cats", columns=Columns("photo", "captions/text", "terms")), r"--licence-column: cats has no field"),
  ],
)
def test_what_a_builder_does_not_have_is_named(built, prepared, settings, message):
  with pytest.raises(UserError, match=message):
    built("pairs", prepared[0], **settings)
