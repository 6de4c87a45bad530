"""The paper's prompts: an example of each kind of task as what is given and what should follow (section 4)."""

from flamingo_jax.evaluation.prompts import Shot, Text
from flamingo_jax.evaluation.tasks.example import Example
from flamingo_jax.evaluation.tasks.reading import filled, most_common


def caption_shot(example: Example) -> Shot:
  """`<image>Output: a cat<EOC>`; of several captions the first."""
  return _shot(example, "Output:", example.references[0] if example.references else "")


def class_shot(example: Example) -> Shot:
  """The same with the name of the class, or another right candidate."""
  return _shot(example, "Output:", _right_option(example))


def question_shot(example: Example) -> Shot:
  """`<image>Question: what is it? Answer: a cat<EOC>`; of several answers the one given most often."""
  answers = filled(example.references)
  answer = most_common(answers) if answers else ""
  return _shot(example, f"Question: {example.question} Answer:", answer)


def choice_shot(example: Example) -> Shot:
  """The same, where the answer is one of the options; these are not in the prompt."""
  return _shot(example, f"Question: {example.question} Answer:", _right_option(example))


def dialogue_shot(example: Example) -> Shot:
  """`<image>caption Question: ... Answer: ... Question: ... Answer: ...<EOC>`."""
  turns = [f"Question: {question} Answer: {answer}" for question, answer in example.history]
  answer = example.references[0] if example.references else ""
  return _shot(example, " ".join([example.caption, *turns, f"Question: {example.question} Answer:"]), answer)


def meme_shot(example: Example) -> Shot:
  """`<image>is an image with written: "..." on it. Is it hateful? Answer: no<EOC>`."""
  given = f'is an image with written: "{example.written}" on it. Is it hateful? Answer:'
  return _shot(example, given, _right_option(example))


def action_shot(example: Example) -> Shot:
  """`<image>Caption: a person hammers a phone`."""
  return _shot(example, "Caption:", _right_option(example))


def candidates(example: Example) -> tuple[str, ...]:
  """What may follow in a close-ended task, in the order of the options; to be ranked by log-likelihood."""
  return tuple(f" {option}" for option in example.options)


def _shot(example: Example, text: str, answer: str) -> Shot:
  return Shot((example.medium, Text(text)), f" {answer}" if answer else "")


def _right_option(example: Example) -> str:
  return "" if example.label is None else example.options[example.label]
