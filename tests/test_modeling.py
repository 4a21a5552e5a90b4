"""The whole model: counts, batches, caches, saving and loading."""

import pytest
import torch

from configuration_shirg import PRESETS
from configuration_shirg.presets_shirg import preset_fields
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.backbone_shirg import ShirgLavidaModel
from modeling_shirg.prefix_cache_shirg import CACHE_ARGUMENT
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

RELATIVE = 5e-5


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).abs().max() <= RELATIVE * expected.abs().max())


@pytest.mark.parametrize("geometry", ["toy", "full"])
@pytest.mark.parametrize("preset", PRESETS)
def test_placeholders_and_image_tokens_match_for_every_preset(preset, geometry):
    config = tiny_config(preset, geometry)
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0, 640, 427)))
    expected = config.count_image_tokens(640, 427)
    assert (inputs["input_ids"] == config.image_token_id).sum() == expected
    with torch.no_grad():
        output = model(**inputs, logits_to_keep=1, output_selection=True)
        images = model.model.get_image_features(
            inputs["pixel_values"],
            fovea_pixel_values=inputs.get("fovea_pixel_values"),
            mosaic_windows=inputs.get("mosaic_windows"),
            patch_boxes=inputs["patch_boxes"],
        )
    assert [each.shape for each in images.image_tokens] == [(expected, 32)]
    assert output.logits.shape == (1, 1, 272)
    assert torch.isfinite(output.logits).all()
    keeps = config.selects and config.selection_method not in ("none", "pool")
    assert (output.kept_indices is not None) == keeps
    if keeps:
        assert output.kept_indices.shape == (1, config.selection_budget)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batched_answers_equal_single_ones(padding_side):
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    together = model.generate(**encode(processor, *chats), max_new_tokens=8)[:, -8:]
    for row, one in enumerate(chats):
        assert together[row].tolist() == model.generate(**encode(processor, one), max_new_tokens=8)[0, -8:].tolist()


def test_cached_generation_equals_a_full_forward_with_a_blind_prompt():
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    output = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_history=True)
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    prompt_embeds, _ = model.model.prepare_inputs_embeds(**given)
    length = prompt_embeds.shape[1]
    sees = torch.ones(1, 1, length + 8, length + 8, dtype=torch.bool)
    sees[:, :, :length, length:] = False
    response = torch.full((1, 8), config.mask_token_id)
    for step in output.history:
        embeds = torch.cat([prompt_embeds, model.get_input_embeddings()(response)], dim=1)
        with torch.no_grad():
            logits = model(inputs_embeds=embeds, attention_mask=sees).logits[:, length:].double()
        logits[..., [config.mask_token_id, config.image_token_id]] = -torch.inf
        confidence, tokens = logits.softmax(-1).max(-1)
        best = confidence.masked_fill(response != config.mask_token_id, -1).argmax()
        response[0, best] = tokens[0, best]
        assert step.tolist() == response.tolist()


def test_conversation_with_images_in_several_turns():
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    turns = [
        *chat("First?", noise_image(0)),
        {"role": "assistant", "content": "One."},
        *chat("Second?", noise_image(1)),
    ]
    inputs = encode(processor, turns)
    assert inputs["question_mask"].shape == (2, inputs["input_ids"].shape[1])
    with torch.no_grad():
        kept = model(**inputs, output_selection=True).kept_indices
        alone = model(**encode(processor, chat("Second?", noise_image(1))), output_selection=True).kept_indices
    assert kept[1].tolist() == alone[0].tolist()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_image_tokens_names_both_counts(change):
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    placeholders = (inputs["input_ids"][0] == config.image_token_id).nonzero()
    position = placeholders[0] if change < 0 else placeholders[-1] + 1
    inputs["input_ids"][0, position] = 65 if change < 0 else config.image_token_id
    with pytest.raises(ValueError, match=f"{245 + change}.*245"):
        model(**inputs)
    with pytest.raises(ValueError, match=f"{245 + change}.*245"):
        model.generate(**inputs, max_new_tokens=4)


def test_images_without_placeholders_and_placeholders_without_images():
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    with pytest.raises(ValueError, match="245.*0 images"):
        model(input_ids=inputs["input_ids"])


def test_foveal_positions_start_as_siglip_interpolates_them():
    tower = ShirgLavidaForConditionalGeneration(tiny_config(geometry="full")).model.vision_tower
    embeddings = tower.vision_model.embeddings
    patches = torch.zeros(1, 1024, 32)
    expected = embeddings.interpolate_pos_encoding(patches, 448, 448)[0]
    assert torch.equal(tower.foveal_position_embedding.weight, expected)
    assert tower.foveal_position_embedding.weight.requires_grad


def test_shirg_784_pools_the_global_view_as_lavida_pools_view_0():
    foveal, tiles = tiny_config("shirg-784"), tiny_config("lavida-980")
    model = tiny_model(foveal)
    other = ShirgLavidaModel(tiles).eval()
    other.load_state_dict(model.model.state_dict(), strict=False)
    image = noise_image(3, 500, 400)
    views = [tiny_processor(config).image_processor(image, return_tensors="pt") for config in (foveal, tiles)]
    with torch.no_grad():
        ours = model.model.get_image_features(**{n: views[0][n] for n in ("pixel_values", "fovea_pixel_values")})
        theirs = other.get_image_features(views[1]["pixel_values"])
    assert torch.allclose(ours.image_tokens[0][:49], theirs.image_tokens[0][:49], atol=1e-5)


def test_saved_equals_loaded_and_two_loads_agree(tmp_path):
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    with torch.no_grad():
        model.model.vision_tower.foveal_position_embedding.weight.add_(0.1)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    model.save_pretrained(tmp_path)
    loads = [ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path).eval() for _ in range(2)]
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    for loaded in loads:
        tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    with torch.no_grad():
        logits = [each(**inputs).logits for each in (model, *loads)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])


def test_a_checkpoint_with_another_foveal_grid_derives_its_table_on_load_and_says_so(tmp_path, caplog):
    model = tiny_model(tiny_config("shirg"))
    with torch.no_grad():
        model.model.vision_tower.foveal_position_embedding.weight.fill_(7.0)
    model.save_pretrained(tmp_path)
    wider = tiny_config("shirg", fovea_size=256)
    with caplog.at_level("WARNING"):
        loaded = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, config=wider)
    table = loaded.model.vision_tower.foveal_position_embedding
    assert table.weight.shape == (18 * 18, 32)
    assert torch.equal(table.weight, table.interpolated_base())
    assert "foveal_position_embedding" in caplog.text and "18x18" in caplog.text


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_padded_prompt_can_be_continued_from_its_cache(padding_side):
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    batch = encode(processor, *chats)
    response = torch.randint(0, 200, (len(chats), 5), generator=torch.Generator().manual_seed(0))
    lengths = batch["attention_mask"].sum(-1, keepdim=True)
    with torch.no_grad():
        cache = model(**batch, use_cache=True)[CACHE_ARGUMENT]
        together = model(
            response,
            attention_mask=torch.cat([batch["attention_mask"], torch.ones_like(response)], dim=1),
            position_ids=lengths + torch.arange(5),
            cache=cache,
        ).logits
        for row, one in enumerate(chats):
            alone = encode(processor, one)
            cache = model(**alone, use_cache=True)[CACHE_ARGUMENT]
            places = alone["input_ids"].shape[1] + torch.arange(5)[None]
            expected = model(response[row : row + 1], position_ids=places, cache=cache).logits
            assert _close(together[row], expected[0])


def test_forward_refuses_what_it_would_ignore_or_misread():
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = dict(encode(processor, chat(QUESTIONS[0], noise_image(0))))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="inputs_embeds hold the images already"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])
    with pytest.raises(TypeError, match="argument pixel_value[.]"):
        model(**inputs, pixel_value=inputs["pixel_values"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_loads_under_every_preset_by_name(tmp_path, preset):
    model = tiny_model(tiny_config("shirg"))
    model.save_pretrained(tmp_path)
    loaded = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, prune_method=preset).eval()
    config_grid = model.config.fovea_grid
    fields = preset_fields(preset, "toy")
    assert {name: getattr(loaded.config, name) for name in fields} == fields
    inputs = encode(tiny_processor(loaded.config), chat(QUESTIONS[0], noise_image(0)))
    answers = []
    for each in (loaded, tiny_model(tiny_config(preset))):
        held = each.state_dict()
        fitting = {n: w for n, w in model.state_dict().items() if n in held and held[n].shape == w.shape}
        each.load_state_dict({**held, **fitting})
        if each.model.vision_tower.foveal_position_embedding is not None:
            table = each.model.vision_tower.foveal_position_embedding
            if table.grid != config_grid:
                table.weight.data.copy_(table.interpolated_base())
        answers.append(each.generate(**inputs, max_new_tokens=4))
    assert torch.equal(*answers)


def test_a_config_field_by_keyword_wins_over_the_saved_one(tmp_path):
    tiny_model(tiny_config("shirg")).save_pretrained(tmp_path)
    load = ShirgLavidaForConditionalGeneration.from_pretrained
    assert load(tmp_path, selection_budget=100).config.selection_budget == 100
    assert load(tmp_path, prune_method="shirg-v1", text_weight=0.0).config.text_weight == 0.0
    with pytest.raises(ValueError, match="'shrig'.*shirg-v1"):
        load(tmp_path, prune_method="shrig")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_system_gives_the_same_alone_and_in_a_batch(preset, padding_side):
    config = tiny_config(preset)
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    chats.append([{"role": "user", "content": "A text-only question among them."}])
    chats.append(chat("Two images?", noise_image(8), noise_image(9, 100, 50)))
    with torch.no_grad():
        batch = encode(processor, *chats)
        together = model(**batch, output_selection=True)
        alone = [model(**encode(processor, one), output_selection=True) for one in chats]
    if together.kept_indices is not None:
        shown = [each.kept_indices for each in alone if each.kept_indices is not None]
        assert together.kept_indices.tolist() == torch.cat(shown).tolist()
    for row, each in enumerate(alone):
        assert _close(together.logits[row, batch["attention_mask"][row].bool()], each.logits[0])


@pytest.mark.parametrize("preset", ["shirg", "shirg-mixed", "shirg-fixed", "visionzip"])
def test_another_budget_at_call_time(preset):
    config = tiny_config(preset)
    model, processor = tiny_model(config), tiny_processor(config)
    budget = 100
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)), processor_kwargs={"selection_budget": budget})
    count = config.num_image_tokens - config.selection_budget + budget
    assert (inputs["input_ids"] == config.image_token_id).sum() == count
    with torch.no_grad():
        called = model(**inputs, output_selection=True)
        fixed = tiny_model(tiny_config(preset, selection_budget=budget))
        fixed.load_state_dict(model.state_dict())
        del inputs["selection_budget"]
        own = fixed(**inputs, output_selection=True)
    assert called.kept_indices.shape == (1, budget)
    assert torch.equal(called.kept_indices, own.kept_indices) and torch.equal(called.logits, own.logits)
    with pytest.raises(ValueError, match=f"{count} image tokens.*give {config.num_image_tokens}"):
        model(**inputs)


def test_a_budget_unlike_the_processors_names_both_counts():
    config = tiny_config("shirg")
    inputs = encode(tiny_processor(config), chat(QUESTIONS[0], noise_image(0)))
    other = tiny_model(tiny_config("shirg", selection_budget=100))
    with pytest.raises(ValueError, match="245 image tokens.* give 164.*exactly \\[164\\].*from_config"):
        other(**inputs)
    with pytest.raises(ValueError, match="245 image tokens.* give 94"):
        tiny_model(config)(**inputs, selection_budget=torch.tensor([30]))
    pair = encode(tiny_processor(config), *(chat(QUESTIONS[0], noise_image(0)) for _ in range(2)))
    with pytest.raises(ValueError, match="same selection_budget, got \\[100, 181\\]"):
        tiny_model(config)(**pair, selection_budget=torch.tensor([181, 100]))
    with pytest.raises(TypeError, match=r"processor\(\.\.\., selection_budget=.* got 64"):
        tiny_model(config).generate(**inputs, selection_budget=64)


@pytest.mark.parametrize("part", ["vision_tower.vision_model.head", "image_newline", "relevance_text_model"])
def test_weights_that_a_checkpoint_lacks_are_an_error_and_not_random_numbers(tmp_path, part):
    config = tiny_config("shirg")
    if part == "relevance_text_model":
        tiny_model(config).save_pretrained(tmp_path)
        tower = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "projection_size": 32}
        fields = {"relevance_text_config": tower, "text_relevance": "siglip"}
    else:
        model = tiny_model(config)
        kept = {name: weight for name, weight in model.state_dict().items() if part not in name}
        assert len(kept) < len(model.state_dict())
        model.save_pretrained(tmp_path, state_dict=kept)
        fields = {}
    for preset in ("shirg", "shirg-3645"):
        with pytest.raises(ValueError, match=f"(?s)lacks \\d+ tensors .*{part}.*--vision_base"):
            ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, prune_method=preset, **fields)


@pytest.mark.parametrize(
    ("preset", "option"),
    [(preset, "selection_budget") for preset in ("lavida", "lavida-980", "siglip-672", "pool")]
    + [("lavida-980", "fovea_size"), ("siglip-672", "fovea_size")],
)
def test_an_option_of_a_call_that_the_preset_does_not_read_is_an_error(preset, option):
    config = tiny_config(preset)
    with pytest.raises(ValueError, match=f"{option}=448"):
        asked = encode(tiny_processor(config), chat("?", noise_image(0)), processor_kwargs={option: 448})
        tiny_model(config)(**asked)
    inputs = encode(tiny_processor(config), chat("?", noise_image(0)))
    with pytest.raises(ValueError, match=f"{option}=5"):
        tiny_model(config)(**inputs, **{option: torch.tensor([5])})


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_adaptive_hides_what_it_does_not_use(padding_side):
    config = tiny_config("shirg-adaptive", selection_mass=0.6)
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    batch = encode(processor, *chats)
    answers = model.generate(**batch, max_new_tokens=6, return_dict_in_generate=True, output_selection=True)
    used = (answers.kept_indices >= 0).sum(-1)
    assert (used < config.selection_budget).all()
    for row, one in enumerate(chats):
        alone = encode(processor, one)
        given = {name: value for name, value in alone.items() if name != "attention_mask"}
        embeds, images = model.model.prepare_inputs_embeds(**given)
        assert images.used_tokens.sum() == 64 + used[row]
        # The same prompt without the unused placeholders.
        shown = embeds[:, images.visible_mask[0]]
        expected = model.generate(inputs_embeds=shown, max_new_tokens=6)[0]
        assert answers.sequences[row, -6:].tolist() == expected.tolist()


def test_the_coordinate_embedding_starts_as_a_no_op_and_moves_tokens_when_trained(tmp_path):
    config = tiny_config("shirg-fixed")
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    plain = tiny_model(tiny_config("shirg-fixed", coordinate_embedding=False))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert not ShirgLavidaForConditionalGeneration(config).model.coordinate_embedding.linear_out.weight.any()
    with torch.no_grad():
        model.model.coordinate_embedding.linear_out.weight.zero_()
        assert _close(model(**inputs).logits, plain(**inputs).logits)
        model.model.coordinate_embedding.linear_out.weight.normal_()
        assert not _close(model(**inputs).logits, plain(**inputs).logits)
    model.save_pretrained(tmp_path)
    loaded = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(
        loaded.model.coordinate_embedding.linear_out.weight, model.model.coordinate_embedding.linear_out.weight
    )
    with pytest.raises(ValueError, match="patch_boxes"):
        model(**{name: value for name, value in inputs.items() if name != "patch_boxes"})


@pytest.mark.parametrize("preset", ["shirg", "shirg-fixed", "visionzip"])
def test_a_preset_that_scores_needs_the_pooling_head_or_another_source(preset):
    fields = {"vision_config": {**tiny_config().vision_config.to_dict(), "vision_use_head": False}}
    with pytest.raises(ValueError, match="vision_use_head=False.*--vision_base.*'received' or 'norm'"):
        ShirgLavidaForConditionalGeneration(tiny_config(preset, **fields))
    ShirgLavidaForConditionalGeneration(tiny_config(preset, attention_source="received", **fields))
    ShirgLavidaForConditionalGeneration(tiny_config("lavida-980", **fields))
