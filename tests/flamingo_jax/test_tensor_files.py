import errno
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from flamingo_jax.errors import UserError
from flamingo_jax.interop import safetensors_files, torch_files
from flamingo_jax.interop.model_folder import content_hash, content_hash_of
from flamingo_jax.interop.safetensors_files import TensorWriter
from flamingo_jax.interop.tensor_files import open_tensors

DTYPES = ("float32", "float16", ml_dtypes.bfloat16, "int8", "int64", "bool", "float64", "uint8", "complex64")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SHAPES = st.lists(st.integers(0, 4), max_size=3)
LAYOUTS = st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5)
MEBIBYTE = 2**20


def filled(layout: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Arrays of random bits, so that some are not numbers."""
  random = np.random.default_rng(seed)
  arrays = {}
  for name, (shape, dtype) in layout.items():
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    bits = random.integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    arrays[name] = bits.view(dtype).reshape(shape)
  return arrays


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert found[name].tobytes() == array.tobytes()


def read_all(path: pathlib.Path) -> dict[str, np.ndarray]:
  tensors = open_tensors(path)
  arrays = {name: tensors.read(name) for name in tensors.names}
  assert {name: (tensors.shape(name), tensors.dtype(name)) for name in arrays} == {
    name: (array.shape, array.dtype) for name, array in arrays.items()
  }
  return arrays


# Against the format's own library.


@settings(max_examples=60, deadline=None)
@given(layout=LAYOUTS)
def test_reads_what_safetensors_writes(tmp_path_factory, layout):
  path = tmp_path_factory.mktemp("read") / "model.safetensors"
  arrays = filled(layout)
  save_file(arrays, path)
  assert open_tensors(path).names == sorted(arrays)
  assert open_tensors(path).files == [path]
  assert_same_bits(read_all(path), arrays)


@settings(max_examples=60, deadline=None)
@given(layout=LAYOUTS, metadata=st.dictionaries(NAMES, NAMES, max_size=2), data=st.data())
def test_safetensors_reads_what_is_written_in_any_order(tmp_path_factory, layout, metadata, data):
  path = tmp_path_factory.mktemp("written") / "model.safetensors"
  arrays = filled(layout)
  pieces = []
  for name, array in arrays.items():
    by_slices = array.ndim and data.draw(st.booleans())
    pieces += [(name, part, index) for index, part in enumerate(array)] if by_slices else [(name, array, None)]
  with TensorWriter(path, layout, metadata) as writer:
    for piece in data.draw(st.permutations(pieces)):
      writer.write(*piece)
  assert_same_bits(load_file(path), arrays)
  assert_same_bits(read_all(path), arrays)
  with safe_open(path, "np") as file:
    assert (file.metadata() or {}) == metadata


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu])
def test_float8_passes_bit_for_bit(tmp_path, dtype):
  arrays = {"kernel": np.arange(256, dtype=np.uint8).view(dtype).reshape(16, 16)}
  save_file(arrays, tmp_path / "theirs.safetensors")
  assert_same_bits(read_all(tmp_path / "theirs.safetensors"), arrays)
  with TensorWriter(tmp_path / "ours.safetensors", {"kernel": ((16, 16), dtype)}) as writer:
    writer.write("kernel", arrays["kernel"])
  assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_every_tensor_is_written_where_its_dtype_can_be_mapped(tmp_path):
  layout = {"a": ((3,), "int8"), "b": ((5,), "float16"), "c": ((1,), "float64"), "d": ((3,), "float32")}
  with TensorWriter(tmp_path / "x.safetensors", layout) as writer:
    for name, array in filled(layout).items():
      writer.write(name, array)
  length, header = header_of(tmp_path / "x.safetensors")
  assert length % 8 == 0
  assert all(header[name]["data_offsets"][0] % np.dtype(dtype).itemsize == 0 for name, (_, dtype) in layout.items())


def header_of(path: pathlib.Path) -> tuple[int, dict]:
  content = path.read_bytes()
  length = int.from_bytes(content[:8], "little")
  return length, json.loads(content[8 : 8 + length])


def test_a_transposed_array_is_written_in_the_order_of_its_own_axes(tmp_path):
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  with TensorWriter(tmp_path / "x.safetensors", {"kernel": ((3, 2), "float32")}) as writer:
    writer.write("kernel", array.T)
  np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["kernel"], [[0, 3], [1, 4], [2, 5]])


def test_the_hash_of_a_file_is_that_of_its_parameters(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_files, "CHUNK", 7)
  layout = {"b/scale": ((), "float32"), "a": ((3, 5), ml_dtypes.bfloat16), "c": ((0, 2), "int8"), "b": ((4,), "bool")}
  arrays = filled(layout)
  save_file(arrays, tmp_path / "x.safetensors")
  oracle = hashlib.sha256()
  for line, name in (("a bfloat16 (3, 5)", "a"), ("b bool (4,)", "b"), ("b/scale float32 ()", "b/scale")):
    oracle.update(f"{line}\n".encode() + arrays[name].tobytes())
  oracle.update(b"c int8 (0, 2)\n")
  assert content_hash(arrays) == content_hash_of(tmp_path / "x.safetensors") == oracle.hexdigest()
  chunks = list(safetensors_files.SafetensorsFile(tmp_path / "x.safetensors").chunks("a"))
  assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]


# What a writer refuses.


@pytest.fixture
def writer(tmp_path):
  with pytest.raises(UserError, match="not written whole"), TensorWriter(tmp_path / "x.safetensors", LAYOUT) as opened:
    yield opened


LAYOUT = {"stack": ((3, 2), "float32"), "scalar": ((), "float32")}
SLICE = np.zeros(2, np.float32)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("other", SLICE), "'other' is not in the layout"),
    (("stack", SLICE), r"given as float32 \(2,\); the layout says float32 \(3, 2\)"),
    (("stack", np.zeros((3, 2), np.float64)), r"given as float64 \(3, 2\); the layout says float32"),
    (("stack", np.zeros((3, 2), ">f4")), "given as >f4"),
    (("stack", np.zeros((1, 2), np.float32), 0), r"given as float32 \(1, 2\); the layout says float32 \(2,\)"),
    (("stack", SLICE, 3), "has no slice 3"),
    (("stack", SLICE, -1), "has no slice -1"),
    (("scalar", np.zeros((), np.float32), 0), "has no slice 0"),
  ],
)
def test_what_the_layout_does_not_promise_is_not_written(writer, arguments, message):
  with pytest.raises(UserError, match=message):
    writer.write(*arguments)


@pytest.mark.parametrize("first", [None, 1])
@pytest.mark.parametrize("second", [None, 1])
def test_nothing_is_written_twice(writer, first, second):
  arrays = {None: np.zeros((3, 2), np.float32), 1: SLICE}
  writer.write("stack", arrays[first], first)
  with pytest.raises(UserError, match=r"'stack(\[1\])?' is written twice"):
    writer.write("stack", arrays[second], second)


def test_a_missing_slice_is_found_at_the_end(tmp_path):
  writer = TensorWriter(tmp_path / "x.safetensors", LAYOUT)
  writer.write("scalar", np.zeros((), np.float32))
  writer.write("stack", SLICE, 0)
  writer.write("stack", SLICE, 2)
  with pytest.raises(UserError, match="1 of 2 tensors were not written whole, 'stack' first"):
    writer.close()


def test_what_went_wrong_first_is_what_is_raised(tmp_path):
  with pytest.raises(KeyError, match="first"), TensorWriter(tmp_path / "x.safetensors", LAYOUT):
    raise KeyError("first")


@pytest.mark.parametrize("layout", [{"a": ((2,), "complex128")}, {"__metadata__": ((2,), "float32")}])
def test_a_layout_that_the_format_cannot_hold_is_refused(tmp_path, layout):
  with pytest.raises(UserError, match="safetensors cannot hold"):
    TensorWriter(tmp_path / "x.safetensors", layout)


def test_a_disk_that_refuses_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match="cannot be written"):
    TensorWriter(tmp_path / "missing" / "x.safetensors", LAYOUT)


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
  def full(descriptor: int):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  writer = TensorWriter(tmp_path / "x.safetensors", {})
  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match=r"x\.safetensors: cannot be written \(No space left"):
    writer.close()


# Damaged and hostile safetensors files.

HEADER = {
  "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
  "b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [8, 12]},
}


def file_bytes(header: object, data: int = 12) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + bytes(range(data))


def changed(name: str, **fields: object) -> bytes:
  return file_bytes(HEADER | {name: HEADER[name] | fields})


def test_the_sound_file_that_the_damaged_ones_are_made_from_is_read(tmp_path):
  (tmp_path / "x.safetensors").write_bytes(file_bytes(HEADER | {"__metadata__": {"format": "np"}}))
  found = read_all(tmp_path / "x.safetensors")
  assert_same_bits(found, load_file(tmp_path / "x.safetensors"))
  np.testing.assert_array_equal(found["b"], [[8, 9], [10, 11]])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "0 bytes are too few"),
    (b"1234567", "7 bytes are too few"),
    (b"version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer"),
    (file_bytes(HEADER)[:40], "the file has 40 bytes"),
    ((100_000_001).to_bytes(8, "little") + bytes(20), "header is 100000001 bytes long"),
    (file_bytes(b'{"\xff": 1}'), "header is not JSON.*utf-8"),
    (file_bytes(json.dumps(HEADER).encode("utf-16")), "header is not JSON"),
    (file_bytes(b'{"\\ud800": 1}'), "header is not JSON.*surrogates"),
    (file_bytes(b"{"), "header is not JSON"),
    (file_bytes(b"[" * 100_000), "header is not JSON.*recursion"),
    (file_bytes(b'{"a": ' + b"1" * 5000 + b"}"), "header is not JSON.*digits"),
    (file_bytes([HEADER]), "header is a JSON list; it should be an object"),
    (file_bytes(json.dumps(HEADER)[:-1].encode() + b', "a": 1}'), "'a' stands 2 times"),
    (file_bytes(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' stands 2 times"),
    (file_bytes(HEADER | {"__metadata__": {"layers": 3}}), "__metadata__ is .* should map names to text"),
    (file_bytes(HEADER | {"__metadata__": ["x"]}), "__metadata__ is .* should map names to text"),
    (file_bytes(HEADER | {"c": 7}), "tensor 'c' is 7"),
    (changed("a", dtype="F31"), "dtype 'F31'; known are BOOL"),
    (changed("a", dtype=None), "dtype None"),
    (changed("a", dtype=["F32"]), r"dtype \['F32'\]"),
    (changed("a", shape=[-2]), r"shape \[-2\]"),
    (changed("a", shape=[-1, -2]), r"shape \[-1, -2\]"),
    (changed("a", shape=[2.0]), r"shape \[2.0\]"),
    (changed("a", shape=[True, 2]), r"shape \[True, 2\]"),
    (changed("a", shape=2), "shape 2"),
    (changed("a", shape=[1] * 65 + [2]), "at most 32 whole numbers"),
    (file_bytes(HEADER | {"c": dict(dtype="F32", shape=[0, 2**62], data_offsets=[12, 12])}), "has the shape"),
    (changed("a", shape=[3]), "takes 12 bytes"),
    (changed("a", dtype="F16"), "takes 4 bytes"),
    (changed("a", data_offsets=[8, 0]), r"data_offsets \[8, 0\]"),
    (changed("a", data_offsets=[-8, 0]), r"data_offsets \[-8, 0\]"),
    (changed("a", data_offsets=[0, 8, 8]), r"data_offsets \[0, 8, 8\]"),
    (changed("a", data_offsets="08"), "data_offsets '08'"),
    (changed("b", data_offsets=[7, 11]), "tensor 'b' overlaps tensor 'a'"),
    (changed("b", data_offsets=[0, 4]), "overlaps"),
    (file_bytes(HEADER | {"c": dict(dtype="F32", shape=[0], data_offsets=[4, 4])}), "tensor 'c' overlaps tensor 'a'"),
    (changed("b", data_offsets=[9, 13]) + b"0", "1 bytes before tensor 'b' belong to none"),
    (file_bytes({"b": HEADER["b"]}), "8 bytes before tensor 'b' belong to none"),
    (file_bytes({"a": HEADER["a"]}), "last 4 bytes belong to no tensor"),
    (file_bytes(HEADER, data=11), "tensor 'b' ends at byte [0-9]+, but the file has"),
  ],
)
def test_damaged_files_are_refused_and_the_fault_is_named(tmp_path, content, message):
  (tmp_path / "x.safetensors").write_bytes(content)
  with pytest.raises(UserError, match=rf"x\.safetensors.*{message}") as raised:
    open_tensors(tmp_path / "x.safetensors")
  assert len(str(raised.value)) < 500
  with pytest.raises((SafetensorError, ValueError)):
    load_file(tmp_path / "x.safetensors")


def test_an_absurd_header_is_not_even_read(tmp_path):
  length = 100_000_001
  with open(tmp_path / "x.safetensors", "wb") as file:
    file.write(length.to_bytes(8, "little"))
    file.truncate(2 * length)
  with pytest.raises(UserError, match="a header at most 100000000"):
    open_tensors(tmp_path / "x.safetensors")


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(file_bytes(HEADER)) - 13), byte=st.integers(0, 255), data=st.integers(10, 13))
def test_what_is_accepted_the_formats_own_library_accepts_too(tmp_path_factory, place, byte, data):
  path = tmp_path_factory.getbasetemp() / "changed.safetensors"
  content = bytearray(file_bytes(HEADER, data))
  content[place] = byte
  path.write_bytes(content)
  try:
    found = read_all(path)
  except UserError:
    return
  assert_same_bits(found, load_file(path))


def test_a_file_that_shrinks_while_it_is_read_is_a_user_error(tmp_path):
  (tmp_path / "x.safetensors").write_bytes(file_bytes(HEADER))
  tensors = open_tensors(tmp_path / "x.safetensors")
  (tmp_path / "x.safetensors").write_bytes(file_bytes(HEADER)[:-1])
  with pytest.raises(UserError, match="became shorter"):
    tensors.read("b")


# Folders.


def write_index(folder: pathlib.Path, homes: object, name: str = "model.safetensors.index.json") -> None:
  (folder / name).write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map=homes)))


@pytest.fixture
def sharded(tmp_path):
  """A folder of two shards, one written by hand and one by safetensors, the way the Hub keeps its files: as links."""
  (tmp_path / "blobs").mkdir()
  (tmp_path / "blobs" / "0123").write_bytes(file_bytes(HEADER))
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "model-00001-of-00002.safetensors").symlink_to("../blobs/0123")
  save_file({"c": np.full(3, 2.5, np.float16)}, folder / "model-00002-of-00002.safetensors")
  homes = {name: f"model-0000{1 + (name == 'c')}-of-00002.safetensors" for name in "cab"}
  write_index(folder, homes)
  return folder


def test_a_sharded_folder_is_one_checkpoint(sharded):
  tensors = open_tensors(str(sharded))
  assert tensors.path == sharded
  assert tensors.names == ["a", "b", "c"]
  assert tensors.files == sorted(sharded.glob("*.safetensors"))
  one, two = (load_file(path) for path in tensors.files)
  assert_same_bits(read_all(sharded), one | two)


def test_a_folder_with_one_file_is_that_file(tmp_path):
  save_file({"a": np.zeros(2, np.float32)}, tmp_path / "any.safetensors")
  (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
  assert open_tensors(tmp_path).files == [tmp_path / "any.safetensors"]


def test_an_unknown_name_is_a_user_error(sharded):
  for ask in (open_tensors(sharded).read, open_tensors(sharded).shape, open_tensors(sharded).dtype):
    with pytest.raises(UserError, match="the tensor 'z' is missing"):
      ask("z")


@pytest.mark.parametrize(
  ("homes", "message"),
  [
    ({"a": "model-00001-of-00002.safetensors", "z": "z.safetensors", "y": "y.safetensors"}, "y.safetensors, z.safete"),
    ({"a": "../blobs/0123"}, "'../blobs/0123' is not the name of a file in the same folder"),
    ({"a": "/etc/passwd"}, "'/etc/passwd' is not the name of a file"),
    ({"a": "./model-00001-of-00002.safetensors"}, "is not the name of a file"),
    ({"a": ".."}, r"'\.\.' is not the name of a file"),
    ({"a": ""}, "'' is not the name of a file"),
    ({"c": "model-00001-of-00002.safetensors"}, "holds the tensor 'c', but it does not"),
    ({"a": 1}, "weight_map should name the file of every tensor"),
    ({}, "weight_map should name the file of every tensor"),
    (["a"], "weight_map should name the file of every tensor"),
  ],
)
def test_an_index_that_misleads_is_refused(sharded, homes, message):
  write_index(sharded, homes)
  with pytest.raises(UserError, match=message):
    open_tensors(sharded)


@pytest.mark.parametrize("text", ['{"weight_map": {"a": "x", "a": "y"}}', "[]", "\x00"])
def test_an_index_that_is_no_object_is_refused(sharded, text):
  (sharded / "model.safetensors.index.json").write_text(text)
  with pytest.raises(UserError, match=r"index\.json is"):
    open_tensors(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
  save_file({name: np.zeros(2, np.float32) for name in "ac"}, sharded / "model-00002-of-00002.safetensors")
  with pytest.raises(UserError, match=r"'a' is in model-00001-of-00002\.safetensors and in model-00002"):
    open_tensors(sharded)


def test_shards_without_an_index_are_refused(sharded):
  (sharded / "model.safetensors.index.json").unlink()
  with pytest.raises(UserError, match=r"index\.json is missing.*model-00001-of-00002"):
    open_tensors(sharded)


@pytest.mark.parametrize(
  ("name", "message"),
  [("", "no checkpoint. Looked for"), ("x.gguf", "not the name of a checkpoint"), ("x.safetensors", "no such file")],
)
def test_where_there_is_no_checkpoint_it_says_what_was_expected(tmp_path, name, message):
  with pytest.raises(UserError, match=message):
    open_tensors(tmp_path / name)


# Files of torch.


@pytest.fixture(scope="module")
def torch():
  return pytest.importorskip("torch")


@pytest.mark.parametrize("wrap", [None, "model_state_dict", "state_dict"])
def test_reads_what_torch_saves(tmp_path, torch, wrap):
  dtypes = ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int64", "uint16", "bool", "complex64"]
  dtypes += ["float8_e4m3fn", "float8_e5m2"]
  values = torch.arange(12).reshape(3, 4)
  state = {dtype: values.to(getattr(torch, dtype)) for dtype in dtypes}
  state |= dict(transposed=values.bfloat16().T, strided=values.float()[:, 1::2], broadcast=values[:1].expand(3, 4))
  state |= dict(scalar=torch.tensor(2.5), empty=torch.zeros(0, 3), trained=torch.nn.Parameter(torch.ones(2)))
  noise = dict(epoch=3, optimizer_state_dict={"step": torch.ones(1)}, name="run")
  torch.save(state | noise if wrap is None else noise | {wrap: state | {"version": 1}}, tmp_path / "x.pt")
  found = read_all(tmp_path / "x.pt")
  assert found.keys() == state.keys()
  for name, tensor in state.items():
    assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(found[name].astype(complex), tensor.detach().to(torch.complex128).numpy())


def test_shards_of_torch_are_one_checkpoint(tmp_path, torch):
  torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
  torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
  homes = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
  write_index(tmp_path, homes, "pytorch_model.bin.index.json")
  assert_same_bits(read_all(tmp_path), {"a": np.ones(2, np.float32), "b": np.zeros(3, np.float32)})


def test_a_folder_with_pytorch_model_is_read(tmp_path, torch):
  torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
  assert_same_bits(read_all(tmp_path), {"a": np.ones(2, np.float32)})


def test_what_was_read_stays_when_the_file_is_mapped_anew(tmp_path, torch, monkeypatch):
  monkeypatch.setattr(torch_files, "MAPPED_AT_MOST", 8)
  torch.save({name: torch.full((3,), float(value)) for value, name in enumerate("abcdef")}, tmp_path / "x.pt")
  found = read_all(tmp_path / "x.pt")
  assert_same_bits(found, {name: np.full(3, value, np.float32) for value, name in enumerate("abcdef")})


def test_what_a_reader_does_to_its_array_is_not_read_again(tmp_path, torch):
  torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
  tensors = open_tensors(tmp_path / "x.pt")
  tensors.read("a")[0] = 7
  np.testing.assert_array_equal(tensors.read("a"), [0, 0, 0])


class MakeFolder:
  """Unpickled, it makes a folder."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def archive(path: pathlib.Path, content: object, compression: int = zipfile.ZIP_STORED) -> None:
  """A file as torch.save writes it, without tensors."""
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    file.writestr("archive/version", "3\n")


def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, torch):
  archive(tmp_path / "x.pt", {"a": MakeFolder(tmp_path / "made")})
  with pytest.raises(UserError, match=r"refused by torch's weights-only loader.*mkdir") as raised:
    open_tensors(tmp_path / "x.pt")
  assert "arbitrary code" not in str(raised.value)
  assert not (tmp_path / "made").exists()
  with zipfile.ZipFile(tmp_path / "x.pt") as file:
    pickle.loads(file.read("archive/data.pkl"))
  assert (tmp_path / "made").exists()


def test_a_legacy_pickle_is_refused_and_nothing_runs(tmp_path):
  (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": MakeFolder(tmp_path / "made")}))
  with pytest.raises(UserError, match="not a whole zip archive"):
    open_tensors(tmp_path / "x.bin")
  assert not (tmp_path / "made").exists()


def test_a_legacy_file_of_torch_is_refused(tmp_path, torch):
  torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
  with pytest.raises(UserError, match="not a whole zip archive"):
    open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_an_archive_that_was_cut_short_is_refused(tmp_path, share):
  archive(tmp_path / "x.pt", {"a": list(range(1000))})
  content = (tmp_path / "x.pt").read_bytes()
  (tmp_path / "x.pt").write_bytes(content[: int(share * len(content))])
  with pytest.raises(UserError, match="not a whole zip archive"):
    open_tensors(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused(tmp_path):
  archive(tmp_path / "x.pt", {"a": 1}, zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match=r"'archive/data\.pkl' is compressed"):
    open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
  ("content", "message"),
  [({"epoch": 3}, "no tensors by name, only 'epoch'"), ({}, "an empty dict"), ([1], "holds a list")],
)
def test_an_archive_without_tensors_is_refused(tmp_path, torch, content, message):
  archive(tmp_path / "x.pt", content)
  with pytest.raises(UserError, match=message):
    open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("options", [dict(layout="sparse_coo"), dict(dtype="complex128"), dict(device="meta")])
def test_a_tensor_that_is_no_plain_array_is_refused(tmp_path, torch, options):
  options = {name: value if name == "device" else getattr(torch, value) for name, value in options.items()}
  torch.save({"a": torch.zeros(2, **options)}, tmp_path / "x.pt")
  with pytest.raises(UserError, match="tensor 'a' is not a plain array"):
    open_tensors(tmp_path / "x.pt")


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  archive(tmp_path / "x.pt", {"a": 1})
  with pytest.raises(UserError, match=r"pip install 'flamingo_jax\[torch\]'"):
    open_tensors(tmp_path / "x.pt")


# Memory.

COPY = """
  import sys
  from flamingo_jax.interop.safetensors_files import TensorWriter
  from flamingo_jax.interop.tensor_files import open_tensors

  def peak():
    with open("/proc/self/status") as status:
      return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

  tensors = open_tensors(sys.argv[1])
  before = peak()
  layout = {name: (tensors.shape(name), tensors.dtype(name)) for name in tensors.names}
  with TensorWriter(sys.argv[2], layout) as writer:
    for name in tensors.names:
      writer.write(name, tensors.read(name))
  print(peak() - before)
"""


def memory_of_a_copy(source: pathlib.Path, target: pathlib.Path) -> int:
  """Bytes by which a process that copies a checkpoint grows; unlike ru_maxrss, VmHWM knows nothing of its parent."""
  if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc")
  command = [sys.executable, "-c", textwrap.dedent(COPY), source, target]
  return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_copy_takes_the_memory_of_two_tensors_not_of_the_file(tmp_path):
  if shutil.disk_usage(tmp_path).free < 4 * 2**30:
    pytest.skip("needs 4 GiB of disk")
  size, count = 64 * MEBIBYTE, 24
  header = {
    f"{number:02}": dict(dtype="F32", shape=[size // 4], data_offsets=[number * size, (number + 1) * size])
    for number in range(count)
  }
  with open(tmp_path / "source.safetensors", "wb") as file:
    file.write(file_bytes(header, data=0))
    start = file.tell()
    file.truncate(start + count * size)
    for number in range(count):
      file.seek(start + (number + 1) * size - 4)
      file.write(np.float32(number).tobytes())
  grown = memory_of_a_copy(tmp_path / "source.safetensors", tmp_path / "copy.safetensors")
  assert grown < 2 * size + 200 * MEBIBYTE
  with safe_open(tmp_path / "copy.safetensors", "np") as copy:
    assert [copy.get_slice(f"{number:02}")[size // 4 - 1 :].item() for number in range(count)] == list(range(count))


def test_a_copy_from_torch_does_not_take_the_memory_of_the_file(tmp_path, torch):
  size, count = 32 * MEBIBYTE, 12
  torch.save({f"{number:02}": torch.full((size // 4,), float(number)) for number in range(count)}, tmp_path / "x.pt")
  grown = memory_of_a_copy(tmp_path / "x.pt", tmp_path / "copy.safetensors")
  assert grown < torch_files.MAPPED_AT_MOST + 2 * size + 100 * MEBIBYTE
  with safe_open(tmp_path / "copy.safetensors", "np") as copy:
    assert [copy.get_slice(f"{number:02}")[size // 4 - 1 :].item() for number in range(count)] == list(range(count))
