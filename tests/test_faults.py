"""The corpus of tests/faults: every bad input is an error that says what to do, and every odd one is taken.

`python -m shirg_scripts.faults` counts what runs here.
"""

from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configuration_shirg import PRESETS, ShirgLavidaConfig
from faults import checkpoints, commands, configs, generation, images, prompts, requests, rows
from faults.case import Case, check, checkpoint, model, picture, processor, temporary_files_in, time_limit

KINDS = (images, prompts, configs, generation, checkpoints, rows, commands, requests)
CASES: list[Case] = [case for kind in KINDS for case in kind.CASES]
RANDOM = settings(max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None)


@pytest.fixture(scope="module", autouse=True)
def made():
    """What the cases share is made before the first of them, outside of its time limit."""
    for make in (model, processor, picture, checkpoint, checkpoints.adapter, requests.client):
        make()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path, record_property):
    record_property("kind", case.kind)
    record_property("expects", "an answer" if case.error is None else "an error")
    folder, temporary = tmp_path / "work", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    with temporary_files_in(temporary):
        check(case, folder, temporary)


def test_the_corpus_has_two_hundred_cases_and_no_name_twice():
    assert len(CASES) >= 200
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 600),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 600), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["foveal", "whole", "anyres", "flat", "lm", "none", "norm", "map", *PRESETS]),
)
_FIELDS = [name for name in ShirgLavidaConfig.__annotations__ if not name.endswith("_config")]


@RANDOM
@given(st.dictionaries(st.sampled_from(_FIELDS), _VALUES, min_size=1, max_size=3))
def test_random_fields_are_a_whole_config_or_an_error_that_names_one(fields):
    try:
        config = configs.from_fields(**fields)
    except (ValueError, StrictDataclassError) as error:
        related = [*fields, *map(str, fields.values()), "preset", "view", "token"]
        assert any(word and word in f"{error} {error.__cause__}" for word in related), error
        return
    assert config.count_image_tokens(300, 200) >= 1
    assert ShirgLavidaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@RANDOM
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_with_random_bytes_in_it_is_an_image_or_an_error_that_names_it(kind, data):
    content = bytearray(images.written(kind, picture().resize((40, 30))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with time_limit(20):
        try:
            views = images.pixels(bytes(content))
        except ValueError as error:
            assert str(error).startswith("Image 0 ")
            return
    assert views["pixel_values"].shape == (1, 3, 192, 192)


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.sampled_from(["user", "text", "image"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@RANDOM
@given(_JSON)
def test_a_random_conversation_is_a_prompt_or_an_error(conversation):
    try:
        prompts.read(conversation)
    except ValueError as error:
        assert any(word in str(error) for word in ("onversation", "message", "<image>", "Text "))
