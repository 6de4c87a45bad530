"""What the Flamingo paper counts, by config and part, and why we count otherwise where that is more than 5% away.

OpenFlamingo and IDEFICS publish names, such as 9B, but no counts of parts to compare with.
"""

RESAMPLER = (
  "6 layers of width 1536 take 12 x 1536^2 parameters each, 170M in all; the paper does not say what its other 24M are."
)

COUNTS = dict(  # table 1
  flamingo_3b={
    "vision encoder": 435e6,
    "resampler": 194e6,
    "gated cross-attention": 1.2e9,
    "language model": 1.4e9,
    "total": 3.2e9,
  },
  flamingo_9b={
    "vision encoder": 435e6,
    "resampler": 194e6,
    "gated cross-attention": 1.6e9,
    "language model": 7.1e9,
    "total": 9.3e9,
  },
  flamingo_80b={
    "vision encoder": 435e6,
    "resampler": 194e6,
    "gated cross-attention": 10e9,
    "language model": 70e9,
    "total": 80e9,
  },
)
COUNTS["chinchilla_1_4b"] = {"language model": 1.4e9, "total": 1.4e9}
COUNTS["flamingo_9b_counts"] = COUNTS["flamingo_9b"]

NOTES = dict(
  chinchilla_1_4b={},
  flamingo_3b={"resampler": RESAMPLER},
  flamingo_9b={
    "resampler": RESAMPLER,
    "gated cross-attention": "10 layers, as the paper's table has; its count fits 8, of 12 D^2 each.",
    "language model": "40 layers, as the paper's table has; its count fits 32 (configs/flamingo_9b_counts.py).",
    "total": "follows from the depth of the language model and the number of gated layers.",
  },
  flamingo_9b_counts={"resampler": RESAMPLER},
  flamingo_80b={"resampler": RESAMPLER},
)
