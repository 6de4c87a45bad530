"""Pictures of one colour, which a text can name."""

import io

from PIL import Image

COLOURS = dict(red=(220, 20, 20), green=(20, 160, 20), blue=(20, 20, 220))


def plain(colour: str) -> bytes:
  """A PNG."""
  file = io.BytesIO()
  Image.new("RGB", (48, 32), COLOURS[colour]).save(file, "PNG")
  return file.getvalue()
