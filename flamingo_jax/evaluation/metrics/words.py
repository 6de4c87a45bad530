"""Captions into words as COCO caption evaluation cuts them: the Penn Treebank's way, lower case, without punctuation.

The reference is the Stanford PTBTokenizer 3.4.1 with `-lowerCase`, and the list of punctuation that pycocoevalcap then
takes out. These rules were found by watching what it prints, and tests hold them to a record of that. What it leaves,
stays here too: brackets become `-lrb-` and the like, and runs such as `!!` are no punctuation of that list.
"""

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_REWRITTEN = {
  **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
  **{"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"},
  **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": " "},
}
_UNSEEN = re.compile("[\U00010000-\U0010ffff\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")  # dropped, as a space
_TYPED = {0x2018: "`", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "--", 0x2014: "--", 0x2011: "-", 0x2026: "..."}

_ACCENTS = r"\u0300-\u036f\u0900-\u0903\u093a-\u094f"
_L = rf"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be]|[{_ACCENTS}])"  # a letter
_W = rf"(?:{_L}|\d)"
_END = rf"(?!{_W})"  # the word ends here
_STOPPED = (  # abbreviations that keep their full stop
  "adm|al|ala|apr|ariz|assn|assoc|asst|atty|attys|aug|ave|bldg|blvd|brig|bros|calif|capt|cf|cmdr|co|col|colo|comdr|conn"
  "|corp|cos|cpl|ct|dec|dept|dr|drs|elec|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|govs|hon|inc|ind|insp|intl|invt|jan"
  "|jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|mich|minn|mlle|mme|mo|mon|mr|mrs|ms|msgr|mt|natl|neb|nev|nov|oct|okla"
  "|penn|pfc|ph|plc|pres|prof|profs|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|sgt|sq|sr|st|ste|supt|tel|tenn|thu|thurs|tue"
  "|tues|univ|va|vs|vt|wed|wis|wyo"
)
_STOPPED_CAPITAL = "Ark|Del|Ill|La|Mass|Miss|Pa|Tex|Wash"  # which in small letters are words
_STOPPED_NUMBER = "art|ca|figs?|nos?|op|pp"  # only before a number
_SENTENCE_STARTS = "A|An|And|At|But|For|He|Her|Here|His|If|In|It|Its|No|Of|On|She|So|The|Their|There|These|They|This"
_PIECE = rf"{_W}+"
_DOTTED = rf"{_L}(?:\.{_L})+"  # U.S, e.g, a.m
_NUMBER = r"[+-]?(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
_HYPHENED = rf"[-_](?:{_DOTTED}\.|{_PIECE})"

# At each place the longest match counts, of equals the first; the token is the match's group, or all of it. What stands
# behind the group is context: "isn't" is longer than "isn", so "is" is cut off there.
_RULES = tuple(
  re.compile(pattern, re.IGNORECASE)
  for pattern in (
    r"</?[a-z!?][^<>\n]*>",
    r"https?://[^\s\"<>|()]*[^\s\"<>|().,;:!?'\-]",
    r"www\.[\w.-]+[\w-]",
    rf"{_W}[\w.+-]*@[\w-]+(?:\.[\w-]+)*",
    rf"#+(?:{_L}+)?",
    r"@+(?:[a-z_]\w*)?",
    r"&(?:#\d+|amp|lt|gt|quot|nbsp);",
    # Words that are cut in two.
    rf"({_L}+?)n[`']t{_END}",
    rf"(can)not{_END}",
    rf"(gon|wan)na{_END}",
    rf"(got)ta{_END}",
    rf"(lem|gim)me{_END}",
    rf"('t)(?:is|was){_END}",
    rf"n[`']t{_END}",
    rf"'(?:[smd]|ll|re|ve){_END}",
    # Words of letters and digits, held together by stops, hyphens, underscores, slashes.
    _PIECE,
    rf"{_L}{_W}*(?:[.!?]{_L}{_W}*)+(?:{_HYPHENED})*",
    rf"(?:{_PIECE}|{_DOTTED}\.?|\d+(?:[.,]\d+)*)(?:{_HYPHENED})+(?:/{_PIECE}(?:{_HYPHENED})*)?",
    rf"{_PIECE}/{_PIECE}(?:/{_PIECE})?(?:{_HYPHENED})*",
    rf"{_DOTTED}\.?(?:{_HYPHENED})*",
    rf"{_L}\.(?!\s+(?-i:{_SENTENCE_STARTS})\b)",
    rf"(?:ph\.d|{_STOPPED})\.",
    rf"(?-i:{_STOPPED_CAPITAL})\.",
    rf"((?:{_STOPPED_NUMBER})\.)\s*\d",
    r"(?-i:[A-Z]+&[A-Z]+)",
    r"c\+\+|c#",
    # Words that begin with, hold or end in an apostrophe.
    rf"'n'|'(?:em|cause|til|n){_END}|ol'{_END}|y'(?={_L})|[dl]'|d'ye{_END}",
    rf"(?:o'clock|ma'am|cap'n|c'mon|(?:[eo]|ne)'er|s'mores){_END}",
    rf"(?:[dlo]'{_L}{{2,}}|c'est|qu'{_L}+)",
    r"'\d\d(?:s|(?=[\s,.;:!?]|$))",
    _NUMBER,
    r"\d{1,4}/\d{1,4}",
    r"\d{1,2}[/-]\d{1,2}[/-]\d{2,4}",
    r"\(\d{3}\)[ -]?\d{3}-\d{4}",
    r"(?-i:[A-Z]{1,3}\$)",
    # Punctuation.
    rf"[:;=][-'o]?(?:[()]|[dp]{_END})",
    r"\.+",
    r"-{2,4}",
    r"-+",
    r"[!?]+",
    r"_+",
    r"\*+",
    r"''|``",
    r"\S",
  )
)


def words(caption: str) -> list[str]:
  """The words of a caption, lower case, as CIDEr and BLEU count them."""
  text = _UNSEEN.sub(" ", caption).translate(_TYPED)
  found = []
  place = 0
  while place < len(text):
    if text[place].isspace():
      place += 1
      continue
    longest = max((match for rule in _RULES if (match := rule.match(text, place))), key=lambda match: match.end())
    token = longest[longest.lastindex or 0]
    place += len(token)
    found += _written(token).split()
  return [token for token in found if token not in PUNCTUATION]


def _written(token: str) -> str:
  """How the reference prints a token: brackets, quotes, dashes and a few signs have names."""
  if re.fullmatch(r"\"|-{2,4}|\.+", token):
    return "--"  # or another that is left out
  for sign in "()[]{}":
    token = token.replace(sign, _REWRITTEN[sign])
  return _REWRITTEN.get(token, token).lower()
