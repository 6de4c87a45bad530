import io
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import filters, videos
from data_pipelines.build.filters import PictureRules
from data_pipelines.build.fingerprints import perceptual_hash
from data_pipelines.build.videos import VideoError, examine_video
from data_pipelines.clips import read_clip
from data_pipelines.media import MediaError


@pytest.fixture(scope="module")
def encode():
  """Makes the bytes of a film in any container: frames of growing brightness at the given times, in 1/100 s."""

  def make(
    form: str, codec: str, times: list[int], size: tuple[int, int] = (96, 64), seconds_of_sound: float = 0
  ) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
      sound = container.add_stream("aac", rate=48000, layout="mono") if seconds_of_sound else None
      stream = container.add_stream(codec, rate=25)
      stream.width, stream.height = size
      stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 100 if form != "avi" else 25)
      for at, time in enumerate(times):
        frame = av.VideoFrame.from_image(Image.new("L", size, 20 + 200 * at // len(times)).convert("RGB"))
        frame.pts = time if form != "avi" else at
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
      for start in range(0, int(48000 * seconds_of_sound), 1024):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.pts, silence.sample_rate = start, 48000
        container.mux(sound.encode(silence))
      container.mux(sound.encode(None) if sound else [])
    return file.getvalue()

  return make


EVEN = list(range(0, 200, 4))  # 2 s, 25 frames a second
FORMS = [("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")]


def cause_of(data: bytes, **options) -> str:
  with pytest.raises(VideoError) as raised:
    examine_video(data, **options)
  return raised.value.cause


@pytest.mark.parametrize("faststart", [True, False])
def test_a_whole_film_lasts_as_long_as_it_was_made(film, faststart):
  assert examine_video(film(faststart)).seconds == pytest.approx(3.0)


@pytest.mark.parametrize(("form", "codec"), FORMS)
def test_every_container_is_read(encode, form, codec):
  assert examine_video(encode(form, codec, EVEN)).seconds == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_film_that_was_cut_off_is_broken(film, faststart, share):
  data = film(faststart)
  assert cause_of(data[: int(share * len(data))]) == "broken_video"


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_cut_avi_is_broken(encode, share):
  data = encode("avi", "mpeg4", EVEN)
  assert cause_of(data[: int(share * len(data))]) == "broken_video"


@pytest.mark.parametrize("data", [b"", b"not a film" * 100, b"\0" * 1000])
def test_what_is_no_film_is_broken(data):
  assert cause_of(data) == "broken_video"


def test_an_avi_whose_index_is_wrong_is_read_without_it(encode):
  data = bytearray(encode("avi", "mpeg4", EVEN))
  index = data.index(b"idx1") + 8
  data[index:] = random.Random(0).randbytes(len(data) - index)
  assert examine_video(bytes(data)).seconds == pytest.approx(2.0, abs=0.05)


def test_an_mp4_whose_index_is_wrong_is_broken(film):
  data = bytearray(film())
  table = data.index(b"stco") + 12
  data[table : table + 40] = b"\xff" * 40
  assert cause_of(bytes(data)) == "broken_video"


@pytest.mark.parametrize(("form", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx")])
def test_frames_may_come_at_any_rate(encode, form, codec):
  uneven = [0, 4, 8, 100, 104, 190]
  assert examine_video(encode(form, codec, uneven)).seconds == pytest.approx(1.9, abs=0.4)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_film_that_was_trimmed_at_its_beginning_is_whole(encode, codec):
  video = examine_video(encode("mp4", codec, [time - 48 for time in EVEN]))  # the first 12 frames are not to be shown
  assert video.seconds == pytest.approx(38 / 25, abs=0.05)
  assert np.asarray(video.middle).mean() == pytest.approx(20 + 200 * 31 / 50, abs=8)


def test_sound_alone_is_no_film():
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  assert cause_of(file.getvalue()) == "broken_video"


def test_a_film_without_frames_is_empty():
  file = io.BytesIO()
  with av.open(file, "w", format="avi") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    container.start_encoding()
  assert cause_of(file.getvalue()) in ("empty_video", "broken_video")


def test_a_clip_must_hold_a_frame(encode):
  data = encode("mp4", "mpeg4", EVEN)
  assert cause_of(data, clip=(5.0, 6.0)) == "empty_video"
  assert cause_of(data, clip=(0.5, 0.51)) == "empty_video"


def test_the_middle_is_that_of_the_clip(encode):
  """Frames grow brighter, so a frame's brightness tells its time."""
  data = encode("mp4", "mpeg4", EVEN)
  clips = ((0, None), (0, 1), (1, 2), (1, 100))
  shades = [np.asarray(examine_video(data, clip).middle).mean() for clip in clips]
  assert shades == pytest.approx([120, 70, 170, 170], abs=6)


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("clip", [(0, None), (1, 2), (1.5, 100)])
def test_sound_that_goes_on_changes_neither_seconds_nor_middle(encode, form, clip):
  silent = examine_video(encode(form, "mpeg4", EVEN), clip)
  loud = examine_video(encode(form, "mpeg4", EVEN, seconds_of_sound=9), clip)
  assert loud.seconds == pytest.approx(silent.seconds, abs=0.01) == pytest.approx(2.0, abs=0.05)
  assert perceptual_hash(loud.middle) == perceptual_hash(silent.middle)
  np.testing.assert_array_equal(loud.middle, silent.middle)


@pytest.mark.parametrize(("form", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx")])
@pytest.mark.parametrize("clip", [(0, None), (1, 2)])
def test_seconds_are_counted_from_the_first_frame(encode, form, codec, clip):
  early = examine_video(encode(form, codec, EVEN), clip)
  late = examine_video(encode(form, codec, [1000 + time for time in EVEN]), clip)
  assert late.seconds == pytest.approx(early.seconds) == pytest.approx(2.0, abs=0.05)
  np.testing.assert_array_equal(late.middle, early.middle)


@pytest.mark.parametrize(
  ("size", "rules", "cause"),
  [
    ((64, 48), PictureRules(), "too_small"),
    ((320, 64), PictureRules(), "aspect_ratio"),
  ],
)
def test_frames_are_judged_as_pictures_are(encode, size, rules, cause):
  assert cause_of(encode("mp4", "mpeg4", EVEN[:5], size), rules=rules) == cause


def test_a_bomb_is_refused_by_its_header(encode, monkeypatch):
  monkeypatch.setattr(filters, "MOST_PIXELS", 96 * 64 - 1)
  monkeypatch.setattr(videos, "_decode", None)  # nothing is to be decoded
  assert cause_of(encode("mp4", "mpeg4", EVEN[:5])) == "too_large"


def growing_film(form: str) -> bytes:
  """A film of 96 x 64 pixels, by its header and at first, whose last frames have 640 x 480."""
  file = io.BytesIO()
  with av.open(file, "w", format=form) as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    larger = av.CodecContext.create("mpeg4", "w")
    larger.width, larger.height, larger.pix_fmt = 640, 480, "yuv420p"
    larger.time_base, larger.framerate = Fraction(1, 10), 10
    for encoder, times in ((stream, range(5)), (larger, range(5, 8))):
      frames = [av.VideoFrame.from_image(Image.new("RGB", (encoder.width, encoder.height))) for _ in times]
      for frame, frame.pts in zip(frames, times, strict=True):
        container.mux(of_stream(encoder.encode(frame), stream))
      container.mux(of_stream(encoder.encode(None), stream))
  return file.getvalue()


def of_stream(packets: list[av.Packet], stream: av.VideoStream) -> list[av.Packet]:
  for packet in packets:
    packet.stream, packet.time_base = stream, Fraction(1, 10)
  return packets


@pytest.mark.parametrize("form", ["mpegts", "matroska", "avi", "mp4"])
def test_a_bomb_that_grows_on_the_way_is_refused_at_build_and_training(form, monkeypatch):
  data = growing_film(form)
  assert examine_video(data, clip=(0.5, None)).middle.size == (640, 480)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 480 - 1)
  assert cause_of(data) == "broken_video"
  with pytest.raises(MediaError, match="broken_video"):
    read_clip(data, 16, frames=8, per_second=0, span=(0, np.inf), start=0)


@pytest.mark.parametrize("form", ["mpegts", "matroska", "avi", "mp4"])
def test_a_clip_whose_frames_change_their_shape_is_broken_at_training(form):
  with pytest.raises(MediaError, match="broken_video: its frames change their shape"):
    read_clip(growing_film(form), 16, frames=8, per_second=0, span=(0, np.inf), start=0)


def test_a_film_is_judged_by_the_shape_in_which_it_is_seen():
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.codec_context.sample_aspect_ratio = 160, 64, Fraction(4, 3)
    container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (160, 64)))))
    container.mux(stream.encode(None))
  assert cause_of(file.getvalue(), rules=PictureRules()) == "aspect_ratio"


def test_a_huge_file_is_refused_unread():
  assert cause_of(bytes(256 * 2**20 + 1)) == "too_large"
