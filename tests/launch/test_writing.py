import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.sampling import GREEDY, Sampling
from launch.generate import writing

PLAIN = dict(temperature=0.0, top_k=0, top_p=1.0, beams=1, length_penalty=1.0)


def test_flags_say_how_to_write():
  assert writing(**PLAIN) == GREEDY
  assert writing(**PLAIN | dict(temperature=0.7, top_k=5, top_p=0.9)) == Sampling(0.7, 5, 0.9)
  assert writing(**PLAIN | dict(beams=4, length_penalty=0.5)) == Beams(4, 0.5)


@pytest.mark.parametrize(
  ("flags", "fault"),
  [
    (dict(beams=3, temperature=0.7), "--beams is 3, and a beam search draws nothing"),
    (dict(beams=0), "width of a beam search is 0"),
    (dict(length_penalty=float("nan"), beams=2), "length_penalty is nan"),
    (dict(top_k=5), "temperature is 0"),
    (dict(temperature=-1.0, top_p=0.0), r"(?s)temperature is -1.*top_p is 0"),
  ],
)
def test_flags_that_cannot_be_are_refused(flags, fault):
  with pytest.raises(UserError, match=fault):
    writing(**PLAIN | flags)
