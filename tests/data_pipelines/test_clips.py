import fractions
import io
import wave

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.build.videos import examine_video
from data_pipelines.clips import decode_clip, decoded, read_clip, read_index, upright
from data_pipelines.media import PADDING, MediaError


@pytest.fixture(scope="module")
def stairs(encode_film):
  """Three seconds, 10 frames each: frame i is gray of level 8 i."""
  return encode_film([Image.new("RGB", (32, 32), (8 * i,) * 3) for i in range(30)])


QUARTERS = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [200, 200, 200]]], np.uint8)


def middle_of_quarters(picture: Image.Image) -> np.ndarray:
  """The colours, int32 [2, 2, 3], in the middle of the quarters of a picture: a film blurs their edges."""
  x, y = picture.width // 4, picture.height // 4
  return np.asarray(picture, np.int32)[y :: 2 * y, x :: 2 * x][:2, :2]


@pytest.fixture(scope="module")
def shown_film():
  """Makes the bytes of a film of those quarters, 64 x 32 pixels, that is to be shown turned or with oblong pixels."""

  def make(form: str, degrees: int, pixel_aspect: fractions.Fraction) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(QUARTERS).resize((64, 32), Image.Resampling.NEAREST)
    with av.open(file, "w", format=form) as container:
      stream = container.add_stream("mpeg4", rate=10, options={"qmin": "1", "qmax": "1"})
      stream.width, stream.height = picture.size
      stream.codec_context.sample_aspect_ratio = pixel_aspect
      stream.set_display_rotation(degrees)
      for _ in range(3):
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
      container.mux(stream.encode(None))
    return file.getvalue()

  return make


def clip(encoded, *, frames, per_second, span=(0.0, np.inf), start=0.0):
  return decode_clip(encoded, 16, frames=frames, per_second=per_second, span=span, start=start)


def frame_numbers(pictures: np.ndarray) -> list[int]:
  return np.rint(pictures.mean(axis=(1, 2, 3)) / 8).astype(int).tolist()


@pytest.mark.parametrize(
  ("sampling", "numbers"),
  [
    (dict(frames=8, per_second=10), [0, 1, 2, 3, 4, 5, 6, 7]),
    (dict(frames=3, per_second=1), [0, 10, 20]),
    (dict(frames=6, per_second=2), [0, 5, 10, 15, 20, 25]),
    (dict(frames=3, per_second=2, start=1 / 1.9), [10, 15, 20]),
    (dict(frames=3, per_second=2, start=0.9999), [19, 24, 29]),
    (dict(frames=4, per_second=5, span=(1.0, 2.0)), [10, 12, 14, 16]),
    (dict(frames=2, per_second=5, span=(1.0, 2.0), start=0.9999), [17, 19]),
  ],
)
def test_frames_are_drawn_at_the_rate_that_was_asked_for(stairs, sampling, numbers):
  pictures, exists = clip(stairs, **sampling)
  assert frame_numbers(pictures) == numbers
  assert exists.all()


def test_a_clip_too_short_is_masked_and_not_repeated(stairs):
  pictures, exists = clip(stairs, frames=8, per_second=2.5, span=(0.0, 1.0))
  assert exists.tolist() == [True] * 3 + [False] * 5
  assert frame_numbers(pictures[:3]) == [0, 4, 8]
  assert not pictures[3:].any()


@given(
  st.integers(1, 12),
  st.floats(0.5, 20),
  st.tuples(st.floats(0, 2.8), st.floats(0.2, 3)),
  st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_no_frame_is_drawn_from_outside_the_span(stairs, frames, per_second, begin_and_seconds, start):
  begin, seconds = begin_and_seconds
  pictures, exists = clip(stairs, frames=frames, per_second=per_second, span=(begin, begin + seconds), start=start)
  numbers = frame_numbers(pictures[exists])
  assert exists[0]
  assert exists.tolist() == sorted(exists.tolist(), reverse=True)
  assert not pictures[~exists].any()
  assert all(begin <= number / 10 < begin + seconds for number in numbers)
  assert numbers == sorted(numbers)
  steps = np.diff(numbers[:-1])  # the last that exists may be the nearest to a time that lies just after the end
  assert (np.abs(steps - 10 / per_second) <= 1 + 1e-6).all()


def test_frames_keep_their_aspect(encode_film):
  pictures, _ = clip(encode_film([Image.new("RGB", (64, 32), "white")] * 2), frames=1, per_second=1)
  assert (pictures[0, :4] == PADDING).all()
  assert (pictures[0, 12:] == PADDING).all()
  assert pictures[0, 4:12].min() > 250


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("pixel_aspect", [fractions.Fraction(1), fractions.Fraction(3, 2), fractions.Fraction(1, 4)])
@pytest.mark.parametrize(
  ("degrees", "turn"),
  [(0, None), (90, Image.Transpose.ROTATE_90), (180, Image.Transpose.ROTATE_180), (270, Image.Transpose.ROTATE_270)],
)
def test_a_film_is_read_as_it_is_to_be_shown_at_build_and_training(shown_film, form, pixel_aspect, degrees, turn):
  square = Image.fromarray(QUARTERS).resize((int(64 * pixel_aspect), 32), Image.Resampling.NEAREST)
  seen = square if turn is None else square.transpose(turn)
  encoded = shown_film(form, degrees, pixel_aspect)
  middle = examine_video(encoded).middle
  assert middle.size == seen.size
  np.testing.assert_allclose(middle_of_quarters(middle), middle_of_quarters(seen), atol=12)
  [picture] = read_clip(encoded, max(seen.size), frames=1, per_second=0, span=(0, np.inf), start=0)
  np.testing.assert_array_equal(picture, middle)


@pytest.mark.parametrize(
  ("pixel_aspect", "cause"),
  [(1e6, "too_large"), (24000, "broken_video")],  # FFmpeg scales to no such width
)
def test_pixels_of_an_absurd_width_are_told_by_name(pixel_aspect, cause):
  frame = av.VideoFrame(64, 32, "yuv420p")
  with pytest.raises(MediaError) as caught:
    upright(frame, pixel_aspect)
  assert caught.value.cause == cause


def test_a_span_without_a_frame_is_told_by_name(stairs):
  with pytest.raises(MediaError, match=r"no frame between 3\.50 and inf s of 2\.90 s") as caught:
    clip(stairs, frames=2, per_second=1, span=(3.5, np.inf))
  assert caught.value.cause == "empty_video"


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_film_that_was_cut_off_is_broken(film, faststart, share):
  encoded = film(faststart)
  with pytest.raises(MediaError) as caught:
    clip(encoded[: int(share * len(encoded))], frames=2, per_second=1)
  assert caught.value.cause == "broken_video"


def sound() -> bytes:
  file = io.BytesIO()
  with wave.open(file, "wb") as writer:
    writer.setnchannels(1)
    writer.setsampwidth(2)
    writer.setframerate(8000)
    writer.writeframes(bytes(16000))
  return file.getvalue()


@pytest.mark.parametrize("encoded", [b"", bytes(1000), b"not a film" * 100, sound()])
def test_what_is_no_film_is_broken(encoded):
  with pytest.raises(MediaError) as caught:
    clip(encoded, frames=2, per_second=1)
  assert caught.value.cause == "broken_video"


@given(st.integers(1, 40), st.tuples(st.floats(0, 2.8), st.floats(0.2, 3)))
@settings(deadline=None, max_examples=50)
def test_frames_spread_evenly_are_each_the_middle_of_its_part(stairs, frames, begin_and_seconds):
  begin, end = begin_and_seconds[0], sum(begin_and_seconds)
  inside = [number for number in range(30) if begin <= number / 10 < end]
  pictures, exists = clip(stairs, frames=frames, per_second=0.0, span=(begin, end))
  numbers = frame_numbers(pictures[exists])
  assert len(numbers) == min(frames, len(inside))
  assert len(set(numbers)) == len(numbers)  # a clip too short is masked, not repeated
  middles = [inside[0] + (part + 0.5) * len(inside) / len(numbers) for part in range(len(numbers))]
  assert all(number <= middle < number + 1 + 1e-6 for number, middle in zip(numbers, middles, strict=True))


def film_at(tmp_path, stamps: list[int], name: str = "film.mp4") -> bytes:
  """A film whose frame i is gray of level 8 i and shown at stamps[i] milliseconds."""
  path = tmp_path / name
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=1000, options={"qmin": "1", "qmax": "1"})
    stream.width = stream.height = 32
    stream.gop_size = 1
    for number, stamp in enumerate(stamps):
      frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (8 * number,) * 3))
      frame.pts = stamp
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path.read_bytes()


def test_frames_of_a_variable_rate_are_told_by_when_they_are_shown(tmp_path):
  film = film_at(tmp_path, [0, 40, 80, 1000, 1900, 2100, 3000, 5000])
  assert read_index(film).times == pytest.approx([0, 0.04, 0.08, 1, 1.9, 2.1, 3, 5])
  pictures, exists = clip(film, frames=5, per_second=1)
  assert exists.all()
  assert frame_numbers(pictures)[:2] == [0, 3]
  assert frame_numbers(pictures)[2] in (4, 5)  # as near as one another
  assert frame_numbers(pictures)[3] == 6
  pictures, exists = clip(film, frames=8, per_second=1, span=(0.9, 2.5))
  assert frame_numbers(pictures[exists]) == [3, 4]


def test_a_film_that_does_not_begin_at_zero_is_counted_from_its_first_frame(tmp_path):
  film = film_at(tmp_path, [7000, 7500, 8000, 8500], "film.mkv")
  pictures, _ = clip(film, frames=2, per_second=1, span=(0.4, 9.0))
  assert frame_numbers(pictures) == [1, 3]


@pytest.mark.parametrize(
  ("ending", "cause"), [("avi", "empty_video"), ("mkv", "broken_video"), ("mp4", "broken_video")]
)
def test_a_film_without_a_frame_is_told_by_name(tmp_path, ending, cause):
  path = tmp_path / f"film.{ending}"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 32
    container.start_encoding()
  with pytest.raises(MediaError) as caught:
    clip(path.read_bytes(), frames=2, per_second=1)
  assert caught.value.cause == cause


def test_an_avi_with_a_broken_index_is_read_frame_by_frame(tmp_path):
  whole = film_at(tmp_path, list(range(0, 1000, 100)), "film.avi")
  at = whole.index(b"idx1") + 8
  broken = whole[:at] + bytes(len(whole) - at)
  np.testing.assert_array_equal(clip(broken, frames=8, per_second=5)[0], clip(whole, frames=8, per_second=5)[0])


@pytest.mark.parametrize("name", [b"stco", b"stsz", b"stsc"])
def test_an_mp4_with_a_broken_index_gives_frames_or_a_media_error(stairs, name):
  at = stairs.index(name) + 12
  for value in (b"\xff" * 8, bytes(8), b"\x00\x00\x10\x00" * 2):
    try:
      pictures, exists = clip(stairs[:at] + value + stairs[at + 8 :], frames=3, per_second=1)
      assert exists.any()
      assert pictures.shape == (3, 16, 16, 3)
    except MediaError as error:
      assert error.cause in ("broken_video", "empty_video")


def test_a_film_of_huge_frames_is_refused_before_it_is_decoded(stairs, monkeypatch):
  monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 32 * 32 - 1)
  with pytest.raises(MediaError, match="32 x 32 pixels") as caught:
    clip(stairs, frames=2, per_second=1)
  assert caught.value.cause == "too_large"


FILMS = {
  "frames from both sides": ("mp4", "libx264", {"g": "12", "bf": "3"}),
  "frames from across an entry": ("mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
  "entries that take frames to recover": ("mkv", "libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
  "without a time of its first frame": ("ts", "mpeg2video", {"g": "12", "bf": "2"}),
  "of another family": ("webm", "libvpx", {"g": "12", "lag-in-frames": "8", "auto-alt-ref": "1"}),
  "whose decoder leaves out what it was told first": ("mp4", "libsvtav1", {"g": "12", "preset": "12"}),
}


@pytest.fixture(scope="module", params=FILMS)
def moving(request, tmp_path_factory):
  """Four seconds of noise that moves, 25 frames each, in which no two frames are equal."""
  ending, codec, options = FILMS[request.param]
  path = tmp_path_factory.mktemp("moving") / f"film.{ending}"
  noise = np.random.default_rng(0).integers(0, 256, (64, 264, 3), np.uint8)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25, options=options)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for number in range(100):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, 2 * number : 2 * number + 64]))
      frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path.read_bytes()


def all_frames(encoded: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Seconds float64 [T] and pixels uint8 [T, H, W, 3] of a whole film, decoded from its beginning."""
  with av.open(io.BytesIO(encoded)) as container:
    frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
  times, pictures = zip(*frames, strict=True)
  return np.array(times), np.stack(pictures)


@pytest.mark.parametrize("start", [0.0, 0.37, 0.71, 0.999])
@pytest.mark.parametrize(
  ("frames", "per_second", "begin"), [(1, 1.0, 0.0), (4, 8.0, 0.0), (6, 0.0, 1.3), (5, 3.7, 2.1)]
)
def test_what_is_left_out_changes_no_frame(moving, frames, per_second, begin, start):
  times, pictures = all_frames(moving)
  assert len(times) == 100
  inside = times[times >= times[0] + begin]
  if per_second:
    first = inside[0] + start * max(inside[-1] - inside[0] - (frames - 1) / per_second, 0)
    wanted = first + np.arange(frames) / per_second
    wanted = wanted[wanted <= inside[-1] + 0.5 / per_second]
  else:
    wanted = inside[[int((part + 0.5) / frames * len(inside)) for part in range(frames)]]
  nearest = inside[np.abs(inside - wanted[:, None]).argmin(axis=1)]
  found = read_clip(moving, 64, frames=frames, per_second=per_second, span=(begin, np.inf), start=start)
  np.testing.assert_array_equal(found, pictures[np.searchsorted(times, nearest)])


@pytest.mark.parametrize("moving", ["frames from both sides"], indirect=True)
def test_a_clip_late_in_a_film_is_decoded_from_the_entry_before_it(moving):
  index = read_index(moving)
  assert len(index.entries) == 9
  late = decoded(moving, index.entry(3.9), frozenset([3.9]))
  assert 0 < len(list(late)) < 20
