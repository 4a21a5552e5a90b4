"""The registry of sources: one small function each, from a row of a data set's schema to turns and images.

A source is added by one function under `@adapter`; its name is then known to `--data` and to mixture files.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from modeling_shirg.training.data.bad_rows import BadRow
from modeling_shirg.training.data.reading import Example, conversation, question_answer

# The prompts that the public harnesses ask these data sets with.
_SINGLE_WORD = "\nAnswer the question with a single word."
_WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."


class DataAdapter(NamedTuple):
    """How rows of one schema are read.

    Attributes:
        adapt: makes an `Example` of a row and the suffix of its question, or raises `BadRow`.
        columns: the sets of columns it can read, the first that a data set has.
        path: where the data set is on the Hub, if it has one place.
        config: its configuration there.
        text_dense: whether its images are full of text, for `--ocr_share`.
        suffix: appended to every question.
    """

    adapt: Callable[[dict[str, Any], str], Example]
    columns: tuple[tuple[str, ...], ...]
    path: str | None = None
    config: str | None = None
    text_dense: bool = False
    suffix: str = ""


ADAPTERS: dict[str, DataAdapter] = {}


def adapter(name: str, *columns: tuple[str, ...], **facts: Any) -> Callable:
    """Enters a function into the registry under `name`."""

    def register(adapt: Callable[[dict[str, Any], str], Example]) -> Callable:
        ADAPTERS[name] = DataAdapter(adapt, columns, **facts)
        return adapt

    return register


@adapter(
    "plain",
    ("image", "conversations"),
    ("image", "question", "answer"),
    ("image", "question", "answers"),
    ("file_name", "conversations"),
    ("file_name", "question", "answer"),
    ("file_name", "question", "answers"),
)
def plain_rows(row: dict[str, Any], suffix: str) -> Example:
    """Anyone's data: an image (or a list of them), and a question with its answer or LLaVA's conversations.

    `file_name` is imagefolder's word for the image. Optional: `fovea_box`, (left, top, right, bottom) in pixels.
    """
    image, box = row.get("image", row.get("file_name")), row.get("fovea_box")
    if row.get("conversations") is not None:
        return conversation(image, row["conversations"], box)
    answer = row["answer"] if row.get("answer") is not None else most_common(row.get("answers"))
    return question_answer(image, row.get("question"), answer, suffix, box)


@adapter("lcs", ("image", "conversations"))
def lcs_558k(row: dict[str, Any], suffix: str) -> Example:
    """LCS-558K (liuhaotian/LLaVA-Pretrain): a folder with `blip_laion_cc_sbu_558k.json` and images.zip or images/."""
    return conversation(row["image"], row["conversations"])


@adapter(
    "chartqa",
    ("image", "query", "label"),
    ("image", "question", "answer"),
    path="HuggingFaceM4/ChartQA",
    text_dense=True,
    suffix=_SINGLE_WORD,
)
def chartqa(row: dict[str, Any], suffix: str) -> Example:
    """ChartQA as HuggingFaceM4 has it (query, a list of labels) or as lmms-lab has it (question, answer)."""
    if "query" in row:
        return question_answer(row["image"], row["query"], most_common(row["label"]), suffix)
    return question_answer(row["image"], row["question"], row["answer"], suffix)


@adapter(
    "docvqa",
    ("image", "question", "answers"),
    path="lmms-lab/DocVQA",
    config="DocVQA",
    text_dense=True,
    suffix=_WORD_OR_PHRASE,
)
def docvqa(row: dict[str, Any], suffix: str) -> Example:
    """DocVQA: the first of the accepted answers, which are spellings of one."""
    return question_answer(row["image"], row["question"], most_common(row["answers"]), suffix)


@adapter(
    "infographicvqa",
    ("image", "question", "answers"),
    path="lmms-lab/DocVQA",
    config="InfographicVQA",
    text_dense=True,
    suffix=_WORD_OR_PHRASE,
)
def infographicvqa(row: dict[str, Any], suffix: str) -> Example:
    """InfographicVQA, in DocVQA's schema."""
    return docvqa(row, suffix)


@adapter(
    "textvqa",
    ("image", "question", "answers"),
    path="lmms-lab/textvqa",
    text_dense=True,
    suffix=_WORD_OR_PHRASE,
)
def textvqa(row: dict[str, Any], suffix: str) -> Example:
    """TextVQA: what most of the ten people answered."""
    return question_answer(row["image"], row["question"], most_common(row["answers"]), suffix)


@adapter(
    "vqav2",
    ("image", "question", "multiple_choice_answer"),
    ("image", "question", "answers"),
    path="lmms-lab/VQAv2",
    suffix=_WORD_OR_PHRASE,
)
def vqav2(row: dict[str, Any], suffix: str) -> Example:
    """VQAv2: the answer most people gave, by its own column where there is one."""
    if "multiple_choice_answer" in row:
        return question_answer(row["image"], row["question"], row["multiple_choice_answer"], suffix)
    answers = [each["answer"] for each in row["answers"] or []]
    return question_answer(row["image"], row["question"], most_common(answers), suffix)


@adapter("synthetic", ("image", "question", "answer"))
def rendered_scenes(row: dict[str, Any], suffix: str) -> Example:
    """Rendered scenes; `synthetic:FAMILY` with a family of scenes.py."""
    return question_answer(row["image"], row["question"], row["answer"], suffix)


def most_common(answers: Any) -> str:
    """The answer given most often, the first of them where several are."""
    if not answers:
        raise BadRow("empty answer")
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise BadRow(f"unreadable answers: {answers!r} is no list of text")
    return Counter(answers).most_common(1)[0][0]
