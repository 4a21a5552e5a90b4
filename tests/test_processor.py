"""Processor: exact placeholder counts, the question of every image, LaViDa's prompt."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from configuration_shirg.processing_shirg_lavida import CHAT_TEMPLATE, ShirgLavidaProcessor
from tokenizer_fixture import make_tokenizer

COUNT = 5
IMAGE_ID = 262
SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LAVIDA_PROMPT = (
    f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM_PROMPT}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>Describe the image in detail.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.fixture(params=["left", "right"])
def processor(request) -> ShirgLavidaProcessor:
    image_processor = ShirgLavidaImageProcessor(size={"height": 28, "width": 28}, fovea_size=42)
    return ShirgLavidaProcessor(image_processor, make_tokenizer(request.param), num_image_tokens=COUNT)


def picture(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (30 + shade, 20), (shade, shade, shade))


def user(*blocks) -> dict:
    """A user message; images become image blocks, strings text blocks."""
    content = [
        {"type": "text", "text": block} if isinstance(block, str) else {"type": "image", "image": block}
        for block in blocks
    ]
    return {"role": "user", "content": content}


def questions(processor, inputs, rows) -> list[str]:
    """The text under each row of the question mask; `rows` is the prompt of each image."""
    return [
        processor.tokenizer.decode(inputs["input_ids"][row][mask.bool()])
        for row, mask in zip(rows, inputs["question_mask"], strict=True)
    ]


def test_text_only(processor):
    inputs = processor(text=["hello", "a longer one"], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["attention_mask"].sum(1).tolist() == [5, 12]
    assert inputs["attention_mask"][0, 0] == (processor.tokenizer.padding_side == "right")
    for nothing in ([], [[], []]):
        assert set(processor(text=["a", "b"], images=nothing)) == {"input_ids", "attention_mask"}


def test_every_image_takes_its_exact_count(processor):
    prompts = ["<image>one", "two <image> and <image>"]
    inputs = processor(text=prompts, images=[picture(1), picture(2), picture(3)], return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [COUNT, 2 * COUNT]
    assert inputs["pixel_values"].shape == (3, 3, 28, 28) and inputs["fovea_pixel_values"].shape == (3, 3, 42, 42)
    assert inputs["image_sizes"][:, 1].tolist() == [31, 32, 33]
    assert inputs["question_mask"].shape == (3, inputs["input_ids"].shape[1])
    assert inputs["question_mask"].dtype == torch.int64
    assert questions(processor, inputs, [0, 1, 1]) == ["one", "twoand", "twoand"]


def test_with_a_mosaic_every_image_takes_the_count_of_its_size():
    mosaic = ShirgLavidaImageProcessor(
        size={"height": 28, "width": 28}, view_policy="anyres", image_grid_pinpoints=[[56, 56]], mosaic_grid_size=2
    )
    processor = ShirgLavidaProcessor(mosaic, make_tokenizer())
    wide, high = Image.new("RGB", (64, 30)), Image.new("RGB", (30, 64))
    inputs = processor(text=["<image>a", "<image>b<image>c"], images=[wide, high, wide], return_tensors="pt")
    # The whole image's 2x2 tokens, then rows of the 4x4 mosaic with a newline token each: 2 rows of 4, or 4 rows of 2.
    assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [4 + 2 * 5, (4 + 4 * 3) + (4 + 2 * 5)]
    assert questions(processor, inputs, [0, 1, 1]) == ["a", "bc", "bc"]


def test_flat_and_nested_images_are_the_same(processor):
    prompts, images = ["no image", "<image>a", "<image><image>b"], [picture(1), picture(2), picture(3)]
    flat = processor(text=prompts, images=images, return_tensors="pt")
    nested = processor(text=prompts, images=[[], images[:1], images[1:]], return_tensors="pt")
    assert flat.keys() == nested.keys()
    for key, value in flat.items():
        assert torch.equal(value, nested[key]), key
    assert questions(processor, flat, [1, 2, 2]) == ["a", "b", "b"]


def test_question_is_the_turn_that_holds_the_image(processor):
    conversations = [
        [
            user(picture(1), "first\nquestion"),
            {"role": "assistant", "content": "an answer"},
            user("second ", picture(2), " question", picture(3)),
        ],
        [user(picture(4), "short")],
    ]
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = ["firstquestion", "secondquestion", "secondquestion", "short"]
    assert questions(processor, inputs, [0, 0, 0, 1]) == expected
    assert inputs["image_sizes"][:, 1].tolist() == [31, 32, 33, 34]


def test_image_tokens_are_no_question_even_where_the_tokenizer_calls_them_text():
    tokenizer = make_tokenizer(image_token=False)
    tokenizer.add_tokens(["<image>"])
    assert not tokenizer.added_tokens_decoder[IMAGE_ID].special
    processor = ShirgLavidaProcessor(ShirgLavidaImageProcessor(), tokenizer, num_image_tokens=COUNT)
    inputs = processor(text="a<image>b", images=picture(), return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE_ID).sum() == COUNT and questions(processor, inputs, [0]) == ["ab"]


def test_a_prompt_in_a_batch_is_the_prompt_alone(processor):
    prompts, images = ["<image>a much longer question", "<image>b"], [picture(1), picture(2)]
    batch = processor(text=prompts, images=images, return_tensors="pt")
    for index in range(2):
        alone = processor(text=prompts[index], images=images[index], return_tensors="pt")
        kept = batch["attention_mask"][index].bool()
        assert torch.equal(batch["input_ids"][index][kept], alone["input_ids"][0])
        assert torch.equal(batch["question_mask"][index][kept], alone["question_mask"][0])
        assert not batch["question_mask"][index][~kept].any()


def test_prompt_is_lavidas(processor):
    conversation = [user(picture(), "Describe the image in detail.")]
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == LAVIDA_PROMPT
    as_string = [{"role": "user", "content": "<image>Describe the image in detail. "}]
    assert processor.apply_chat_template(as_string, add_generation_prompt=True) == LAVIDA_PROMPT
    assert processor.apply_chat_template(conversation) == LAVIDA_PROMPT.removesuffix(
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    own_system = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *as_string])
    assert own_system.startswith("<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert SYSTEM_PROMPT not in own_system


def test_assistant_mask_covers_answers_and_their_end(processor):
    conversation = [
        user(picture(), "What?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A cat.\n"}]},
        user("Sure?"),
        {"role": "assistant", "content": " Yes. "},
    ]
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    answers = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    assert processor.tokenizer.decode(answers) == "A cat.<|eot_id|>Yes.<|eot_id|>"


@pytest.mark.parametrize(
    ("prompts", "images", "message"),
    [
        ("<image>a", [picture(), picture()], r"1 <image> tokens and 2 images"),
        ("<image>a", None, r"1 <image> tokens in the text but no images"),
        ("a", picture(), r"0 <image> tokens and 1 images"),
        (["<image><image>", "a"], [[picture()], [picture()]], r"\[2, 0\] <image> tokens for \[1, 1\] images"),
        (["<image>", "<image>"], [[picture(), picture()]], r"\[1, 1\] <image> tokens for \[2\] images"),
    ],
)
def test_a_count_mismatch_names_both_counts(processor, prompts, images, message):
    with pytest.raises(ValueError, match=message):
        processor(text=prompts, images=images)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hello"],
        [{"role": "robot", "content": "hello"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [user(picture(), "and <image>?")],
        [user("\ud800")],
    ],
)
def test_what_is_no_conversation_is_an_error(processor, messages):
    with pytest.raises(ValueError):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)


def test_sanitized_user_text_is_plain_text(processor):
    inputs = processor.apply_chat_template(
        [user(picture(), "and <image>?")],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
    )
    assert (inputs["input_ids"] == IMAGE_ID).sum() == COUNT
    assert questions(processor, inputs, [0]) == ["and<image>?"]


def test_truncation_that_cuts_image_tokens_is_an_error(processor):
    with pytest.raises(ValueError, match=rf"ids=\[3\] and text=\[{COUNT}\]"):
        processor(text="<image>question", images=picture(), truncation=True, max_length=3)
    inputs = processor(text="<image>question", images=picture(), truncation=True, max_length=8, return_tensors="pt")
    assert questions(processor, inputs, [0]) == ["que"]


def test_decoding_strips_answers_but_not_prompts(processor):
    answers = processor.tokenizer([" a cat.<|eot_id|><|endoftext|>", "two \n<|eot_id|>"], padding=True)["input_ids"]
    assert processor.post_process_image_text_to_text(torch.tensor(answers)) == ["a cat.", "two"]
    assert processor.post_process_image_text_to_text(answers[0]) == ["a cat."]
    prompt = processor(text=LAVIDA_PROMPT, images=picture(), return_tensors="pt")["input_ids"]
    raw = processor.post_process_image_text_to_text(answers, skip_special_tokens=False)
    assert "a cat.<|eot_id|>" in raw[0] and "two \n<|eot_id|>" in raw[1]
    whole = torch.cat([prompt, torch.tensor([answers[0]])], dim=1)
    prompt_text, whole_text = (processor.post_process_image_text_to_text(ids)[0] for ids in (prompt, whole))
    assert whole_text.removeprefix(prompt_text) == " a cat."
    header_alone = processor(text="<|start_header_id|> hello ")["input_ids"]
    image_alone = processor(text="<image> hello ", images=picture())["input_ids"]
    assert processor.post_process_image_text_to_text(header_alone) == [" hello "]
    assert processor.post_process_image_text_to_text(image_alone) == [" hello "]


def test_from_config():
    config = ShirgLavidaConfig.from_preset("shirg", geometry="toy", image_token_id=IMAGE_ID)
    processor = ShirgLavidaProcessor.from_config(config, make_tokenizer())
    inputs = processor(text="<image>", images=picture(), return_tensors="pt")
    assert (inputs["input_ids"] == config.image_token_id).sum() == config.num_image_tokens == 245
    own_prompt = ShirgLavidaProcessor.from_config(
        config, make_tokenizer(), chat_template="<image>{{ messages[0].role }}"
    )
    assert own_prompt.apply_chat_template([user(picture())]) == "<image>user"
    with pytest.raises(ValueError, match="is 262, but config.image_token_id is 7"):
        ShirgLavidaProcessor.from_config(ShirgLavidaConfig.from_preset("shirg", image_token_id=7), make_tokenizer())
    with pytest.raises(ValueError, match="'<image>'.*add_tokens"):
        ShirgLavidaProcessor.from_config(config, make_tokenizer(image_token=False))


@pytest.mark.parametrize("preset", ["shirg", "lavida-980"])
def test_save_and_load_keep_everything(tmp_path, preset):
    AutoImageProcessor.register(
        ShirgLavidaConfig, image_processor_classes={"pil": ShirgLavidaImageProcessor}, exist_ok=True
    )
    config = ShirgLavidaConfig.from_preset(preset, geometry="toy", image_token_id=IMAGE_ID)
    processor = ShirgLavidaProcessor.from_config(config, make_tokenizer("left"))
    processor.save_pretrained(tmp_path)
    loaded = ShirgLavidaProcessor.from_pretrained(tmp_path)
    # Only a class that is registered for an Auto class writes its own `auto_map`; tests/test_hub.py loads by it.
    saved, read = (
        {key: value for key, value in each.to_dict().items() if key != "auto_map"} for each in (processor, loaded)
    )
    assert read == saved
    assert (loaded.chat_template, loaded.tokenizer.padding_side) == (CHAT_TEMPLATE, "left")
    arguments = {"text": ["<image>a", "b <image>"], "images": [picture(1), picture(2)], "return_tensors": "pt"}
    before, after = processor(**copy.copy(arguments)), loaded(**copy.copy(arguments))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
