"""Records how the reference cuts captions into words; needs Java and pycocoevalcap, which runs Stanford's tokenizer.

python tests/flamingo_jax/evaluation/record_words.py > tests/flamingo_jax/evaluation/words.json
"""
# ruff: noqa: RUF001 - typographic quotes and dashes are what is to be recorded

import json
import random
import sys

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

SUBJECTS = (
  "a man|two people|the young girl's dog|A black-and-white cat|a woman in a t-shirt"
  "|the U.S. Army soldier|Mr. Brown|a 3-year-old boy|a dog, a cat,|St. Bernard|the players'|O'Neil"
  "|a 10 ft. giraffe|Dr. Smith|a 1950's car|the '50s diner|a male/female team|a bride & groom|M&M's"
  "|a B&W photo|the 1st baseman|a \"stop\" sign|'Stop' sign|a sign (red)|No. 7|Mt. Fuji"
  "|an 8:30 p.m. train|a jr. player|t.v. set|TV's|a $5 bill|50% off|a #1 fan|cars,trucks"
  "|St. Louis' arch|a 4x4 truck|Washington D.C.|the women’s team|“Two” men|someone"
)
VERBS = (
  "is riding|isn't eating|can't reach|doesn't see|won't share|that's holding|is \"flying\""
  "|'s jumping over|they're watching|cannot catch|gonna hit|, sitting on|; standing by|- looking at"
  "|-- near|– near|/ by|: holding|(holding)|I'm near|we've seen|you'd like|he'll ride|let's ride"
  "|don’t like|lying on"
)
OBJECTS = (
  "a wave|the surfboard.|a train in the 1990s|pizza & beer|the half-eaten cake|bread, cheese, and milk"
  '|a $5.00 watch|a sign that reads "No Parking"|a No. 5 shirt|the 2nd base|a 12-inch sub|Coca-Cola'
  "|fruits/vegetables|the dogs' bowl|a 5-lb. bag|an iPhone 4S|McDonald's|Wendy's.|a T.V.|a tv."
  "|a clock at 3:15pm|Dec. 25th|July 4, 1776|Main St.|5th Ave.|Hwy. 61|Rt. 66|a rock 'n' roll band"
  "|salt n' pepper|mac-n-cheese|PB&J|a mid-air trick|a man's/woman's shoe|e.g. apples"
  "|apples, oranges, etc.|a ~5 ft. tree|a 1/2 pipe|an 8 1/2 x 11 page|a+b|100-150 people|1,000 people"
  "|1.5 liters|the U.K.|Jr.|www.flickr.com|a flickr.com photo|@home|x's and o's|the '80s|5 o'clock"
  "|ma'am|y'all|'til dawn|ol' truck|café|crème brûlée|1½ cups|a <b> tag|c++"
)
PLACES = (
  "| in a park| at 10 p.m.| on the street,| in the snow. | near St. Mary's| in L.A.|  in  the  sun"
  "| (on a beach)| [in a room]| {inside}| in the '60s| in front of a Wal-Mart| on Sat. night"
  "| in Sept. 2010| w/ friends| w/o shoes| with friend(s)| and/or others| vs. others| i.e. home"
)
ENDS = (
  '|.|.| .|!|!!|...| ...|…|..|?|,|;|"|\'| "| (sic)|)|.)|."|".|.\'| -|--|:|&| and more.|,and more'
  "|.And then|. The end.|*|?!"
)


def captions(count: int) -> list[str]:
  generator = random.Random(0)
  parts = [choices.split("|") for choices in (SUBJECTS, VERBS, OBJECTS, PLACES, ENDS)]
  drawn = ([generator.choice(choices) for choices in parts] for _ in range(count))
  return [(" ".join(each[:3]) + each[3] + each[4]).strip() for each in drawn]


def main() -> None:
  texts = captions(600)
  cut = PTBTokenizer().tokenize({place: [{"caption": text}] for place, text in enumerate(texts)})
  rows = [[text, " ".join(cut[place][0].split())] for place, text in enumerate(texts)]
  json.dump(rows, sys.stdout, indent=0, ensure_ascii=False)


if __name__ == "__main__":
  main()
