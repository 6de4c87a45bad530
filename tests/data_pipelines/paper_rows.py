"""The paper's rules of a page (section 2.1 to 2.3, appendix A.3.1), written out in plain Python."""

BOS, IMAGE, EOC, EOS = "<BOS>", "<image>", "<EOC>", "<EOS>"


def paper_page(chunks):
  """A whole page as (token, its image): `<EOC>` before every image that something precedes, and at the end."""
  page = []
  for number, chunk in enumerate(chunks):
    if number:
      page += [(EOC, None)] * bool(page) + [(IMAGE, number - 1)]
    page += [(token, None) for token in chunk]
  return [*page, (EOC, None)]


def paper_row(chunks, length, slots, first, see_next):
  """The window from place `first`: its tokens, loss weights, phi and images."""
  window = [(BOS, None), *paper_page(chunks)[first : first + length - 1]]
  kept = [image for token, image in window if token == IMAGE][:slots]
  tokens, phi = [], []
  for place, (token, image) in enumerate(window):
    if token == IMAGE and image not in kept:  # discarded with its marker: and with the <EOC> that stands before it
      del tokens[-1], phi[-1]
      continue
    before = [other for marker, other in window[: place + 1] if marker == IMAGE]
    after = [other for marker, other in window[place:] if marker == IMAGE]
    seen = after[:1] if see_next else before[-1:]
    tokens.append(token)
    phi.append(kept.index(seen[0]) if seen and seen[0] in kept else -1)
  return tokens, [float(token not in (BOS, IMAGE)) for token in tokens], phi, tuple(kept)


def windows(chunks, length):
  """How many windows of `length` tokens, <BOS> included, a page has."""
  return max(len(paper_page(chunks)) - (length - 1), 0) + 1
