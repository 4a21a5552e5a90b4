"""VQA accuracy with the normalisation of the official script (GT-Vision-Lab/VQA, vqaEval.py), its quirks included."""

import re
from collections.abc import Mapping, Sequence
from statistics import mean

from modeling_shirg.evaluation.metrics.answer_scores import checked_golds

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern means to spare a period after a digit too, but its look-behind is misspelt: "5." loses it.
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)  # the official call passes a flag where the count goes

# Words that are known with all their apostrophes, and that are mended where all of them are missing.
_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Words with two apostrophes or more, mended where exactly one of them is missing.
_TWICE_CONTRACTED = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


_CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _CONTRACTED},
    **{short: word for word in _TWICE_CONTRACTED for short in _without_one_apostrophe(word)},
    **{short: "'ow's'at" for short in _without_one_apostrophe("'ow's'at")},
    "somebody'd": "somebodyd",  # sic
}


def normalize(text: str) -> str:
    """A text as the official script compares it: no articles, digits for number words, mended contractions."""
    words = _without_punctuation(" ".join(text.split())).lower().split()
    numbered = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def vqa_accuracy(prediction: str, golds: Sequence[str], keep_unanimous: bool = True) -> float:
    """Mean over the golds (each annotator's answer) of min(matches among the others / 3, 1), 0..1.

    With `keep_unanimous`, golds that are all the same are not normalised, as in VQAv2's script: an answer "none" then
    becomes "0" and misses ten "none". TextVQA's evaluation normalises them.
    """
    if len(checked_golds(golds)) < 2:
        raise ValueError(f"VQA accuracy leaves one gold out, so it needs at least 2, got {list(golds)}.")
    targets = [gold.strip() for gold in golds]
    if not keep_unanimous or len(set(targets)) > 1:
        targets = [normalize(target) for target in targets]
    matches = [target == normalize(prediction) for target in targets]
    return mean(min((sum(matches) - match) / 3, 1.0) for match in matches)


def gold_texts(answers: Sequence[str] | Sequence[Mapping]) -> list[str]:
    """The texts of a row's golds: VQAv2 has a mapping per annotator, TextVQA and DocVQA have texts."""
    return [answer["answer"] if isinstance(answer, Mapping) else answer for answer in answers]


def _without_punctuation(text: str) -> str:
    """Each mark becomes a space, or nothing where a space is beside it or where a number is written with commas."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        vanishes = joined or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)
