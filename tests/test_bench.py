"""`shirg bench`: what is timed and counted, and how it is told. No test is about how long something takes."""

import json
import re
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configuration_shirg import PRESETS, ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.limits import Rates, counted_stages, limits, measure_rates
from modeling_shirg.evaluation.operations import OperationCount, Operations, counts_without_weights
from modeling_shirg.evaluation.profiles import PROFILES, profile_config, under_system
from modeling_shirg.evaluation.selection_cost import fitted_exponent, full_size_share, growth, own_system, see
from modeling_shirg.evaluation.side_by_side import (
    QUESTION,
    Answered,
    System,
    answer,
    check_baseline,
    measure,
    peak_memory,
    prefix_savings,
    ratios,
    torch_threads,
)
from modeling_shirg.foveal_selections_shirg import merged_values
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.systems import parse_row, smaller_caches, with_variants
from modeling_shirg.running.timing import STAGES, StageClock, spread
from modeling_shirg.selection_shirg import Selection
from shirg_scripts.bench_curves import CURVES
from shirg_scripts.bench_tables import table
from shirg_scripts.cli import main
from shirg_scripts.speed_page import AIMS, MEASUREMENTS, aims_table, page
from tiny_model import encode, tiny_config, tiny_model, tiny_processor

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GENERATION = {"max_new_tokens": 8, "steps": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads on a busy machine wait for each other."""
    with torch_threads(1):
        yield


def _system(preset: str = "shirg", batch: int = 1, geometry: str = "toy", **generation) -> System:
    config = tiny_config(preset, geometry)
    return System(tiny_model(config), tiny_processor(config), {**GENERATION, **generation}, batch, (300, 260))


def _answer(system: System) -> Answered:
    return answer(system, system.chats(), StageClock())


class TestStageClock:
    def test_a_moment_belongs_to_the_innermost_stage(self):
        ticks = iter([0, 1, 3, 6, 10, 15])
        clock = StageClock(now=lambda: next(ticks))
        with clock.stage("rest"):  # 0
            with clock.stage("encode"):  # 1
                clock.switch("select")  # 3
                with clock.stage("project"):  # 6
                    pass  # 10
            # 15, and the end of "rest" finds no more ticks
            ticks = iter([21])
        assert clock.seconds == {"rest": 1 + 6, "encode": 2, "select": 3 + 5, "project": 4}
        assert clock.current is None

    @pytest.mark.parametrize("preset", ["shirg", "lavida-980"])
    def test_the_stages_of_an_answer_sum_to_its_time(self, preset):
        system = _system(preset)
        chats, start = system.chats(), time.perf_counter()
        run = answer(system, chats, StageClock())
        elapsed = time.perf_counter() - start
        seconds = run.clock.seconds
        assert set(seconds) <= set(STAGES)
        assert all(value >= 0 for value in seconds.values())
        assert 0.8 * elapsed < sum(seconds.values()) <= elapsed
        assert len(run.clock.steps) == run.facts["forwards"] == 4
        assert sum(run.clock.steps) == pytest.approx(seconds["denoise"])
        assert all(seconds[name] > 0 for name in ("preprocess", "encode", "project", "prefix", "denoise", "rest"))
        assert (seconds["select"] > 0) == (preset == "shirg")
        assert seconds["evict"] == 0

    @pytest.mark.parametrize("generation", [{"prefix_kv": 0.6}, {"prefix_dtype": "int8"}, {"use_cache": False}])
    def test_what_the_cache_costs_is_a_stage(self, generation):
        seconds = _answer(_system(**generation)).clock.seconds
        cached = "use_cache" not in generation
        assert ((seconds["evict"] > 0), (seconds["prefix"] > 0)) == (cached, cached)

    def test_nothing_is_left_on_the_model_and_the_answer_is_the_same(self):
        system = _system(prefix_kv=0.8)
        inputs = encode(system.processor, system.chats()[0])
        plain = system.model.generate(**inputs, **system.generation)
        before = {name: set(vars(module)) for name, module in system.model.named_modules()}
        with StageClock().watch(system.model):
            watched = system.model.generate(**inputs, **system.generation)
            assert "generate" in vars(system.model)
        assert watched.tolist() == plain.tolist()
        assert {name: set(vars(module)) for name, module in system.model.named_modules()} == before
        assert not any(module._forward_hooks for module in system.model.modules())

    def test_an_error_leaves_nothing_either(self):
        system, clock = _system(), StageClock()
        with pytest.raises(ValueError, match="needs input_ids"), clock.watch(system.model):
            system.model.generate(max_new_tokens=8)
        assert "generate" not in vars(system.model)
        assert clock.current is None

    def test_a_wrapper_of_someone_else_comes_back(self):
        model = _system().model
        model.generate = other = lambda *args, **kwargs: "theirs"
        with StageClock().watch(model):
            assert model.generate() == "theirs"
        assert vars(model)["generate"] is other


def test_spread_of_repeats():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"median": 3.0, "min": 1.0, "max": 5.0, "q1": 2.0, "q3": 4.0}
    assert set(spread([2.0]).values()) == {2.0}


class TestOperations:
    def _count(self, run, model: nn.Module | None = None) -> Operations:
        with torch.no_grad(), OperationCount(StageClock(), model) as counter:
            run()
        return counter.stages[""]

    def test_a_linear_layer(self):
        layer, tokens = nn.Linear(8, 3), torch.ones(2, 5, 8)
        assert self._count(lambda: layer(tokens), layer) == Operations(2 * 10 * 8 * 3, 0, 4 * (8 * 3 + 3))

    def test_attention_of_the_cpu(self):
        query, key = torch.ones(1, 2, 5, 4), torch.ones(1, 2, 7, 4)
        found = self._count(lambda: F.scaled_dot_product_attention(query, key, key))
        assert found.flops == 2 * (2 * 2 * 5 * 7 * 4)

    def test_products_that_torch_does_not_count(self):
        matrix, vector = torch.ones(6, 4), torch.ones(4)
        assert self._count(lambda: matrix @ vector).flops == 2 * 6 * 4
        assert self._count(lambda: torch.cdist(matrix, matrix)).flops == 2 * 6 * 6 * 4

    def test_other_operations_count_elements_read_or_written(self):
        values = torch.ones(6, 4)
        assert self._count(lambda: values.sum(0)) == Operations(0, 24, 0)
        assert self._count(lambda: values[:, :2].add(1)) == Operations(0, 12, 0)
        assert self._count(lambda: values.T) == Operations()

    def test_a_lookup_reads_its_rows(self):
        embedding = nn.Embedding(100, 4)
        assert self._count(lambda: embedding(torch.tensor([1, 7])), embedding) == Operations(0, 8, 2 * 4 * 4)

    @pytest.mark.parametrize("preset", ["shirg", "lavida-980", "shirg-fixed", "visionzip"])
    def test_an_answer_is_counted_without_weights_as_it_runs(self, preset):
        """So the boundaries of the stages hold too: their products are told apart here by size alone."""
        system = _system(preset)
        counted, facts = counted_stages(system)
        (chat,) = system.chats()
        question_tokens = int(encode(system.processor, chat)["question_mask"].sum())
        assert 10 < question_tokens <= len(QUESTION)  # bytes are tokens, spaces are no question
        fake = counts_without_weights(system.model.config, facts["prompt_tokens"], question_tokens, 8)
        for stage in ("encode", "project", "prefix"):
            assert fake[stage].flops == counted[stage].flops > 0
            # In bfloat16 instead of float32.
            assert 2 * fake[stage].weight_bytes == counted[stage].weight_bytes
        text, forwards = system.model.config.text_config, facts["forwards"]
        head = 2 * text.hidden_size * text.vocab_size
        rows = sum(left if left <= 3 else 16 for left in range(8, 0, -8 // forwards))
        assert forwards * (fake["step"].flops - 8 * head) + rows * head == counted["denoise"].flops > 0
        assert fake.get("select", Operations()).flops == counted.get("select", Operations()).flops

    def test_the_full_size_by_hand(self):
        """Multiplications and additions of SigLIP so400m on 729 + 1,024 patches and of LLaDA-8B on the prompt."""
        config = ShirgLavidaConfig.from_preset("shirg")
        prompt, answered = 1040, 32
        counts = counts_without_weights(config, prompt, 10, answered)

        def siglip(patches: int, layers: int) -> int:
            layer = 4 * patches * 1152**2 + 2 * patches * 1152 * 4304 + 2 * patches**2 * 1152
            return 2 * layers * layer

        def llada(tokens: int, seen: int, layers: int = 32) -> int:
            return 2 * layers * (4 * tokens * 4096**2 + 3 * tokens * 4096 * 12288 + 2 * tokens * seen * 4096)

        def patch_embedding(patches: int) -> int:
            return 2 * patches * 3 * 14 * 14 * 1152

        encode_flops = siglip(729, 26) + siglip(1024, 26) + patch_embedding(729) + patch_embedding(1024)
        assert counts["encode"].flops == encode_flops
        last_keys_and_values = 2 * 2 * prompt * 4096**2
        assert counts["prefix"].flops == llada(prompt, prompt, layers=31) + last_keys_and_values
        head = 2 * answered * 4096 * 126464
        assert counts["step"].flops == llada(answered, prompt + answered) + head
        assert counts["step"].weight_bytes == pytest.approx(2 * (8.02e9 - 4096 * 126464), rel=0.01)
        # One more layer for the probe, its keys and query, redundancy, the question.
        probe = siglip(1024, 1) + 2 * 1024 * 1152**2 + 2 * 1024 * 1152 + 2 * 1152**2
        assert counts["select"].flops == probe + 2 * 1024 * 1152 + 2 * 1024 * 10 * 4096
        assert counts["dropped"].flops == 2 * 300 * (1152 * 4096 + 4096**2)

    def test_selection_costs_at_most_2_percent_of_encode_and_prefix_at_full_size(self):
        share = full_size_share("shirg")
        assert 0 < share["share"] < share["share_with_dropped"] <= 0.02
        assert f"SHIRG's choice is {share['share_with_dropped']:.1%} of the operations" in README


class TestSideBySide:
    def test_repeats_are_taken_in_turn_and_the_warm_up_does_not_count(self):
        systems = {"a": _system("lavida-980"), "b": _system("shirg")}
        asked, moments = [], count()

        def ask(system: System, chats: list, clock: StageClock) -> Answered:
            asked.append(next(name for name, each in systems.items() if each is system))
            clock.seconds["encode"] = float(next(moments))
            return Answered(clock, {})

        measured = measure(systems, repeats=2, warmup=1, ask=ask)
        # Two rounds of warm-up and repeats in turn, then one run each for the memory.
        assert asked == ["a", "b"] * 3 + ["a", "b"]
        assert measured["a"].seconds["encode"] == [2.0, 4.0]
        assert measured["b"].seconds["total"] == [3.0, 5.0]
        assert measured["a"].facts["first_seconds"] == 0.0 and measured["b"].facts["first_seconds"] == 1.0
        assert "step" not in measured["a"].spreads()

    def test_all_systems_see_the_same_pictures(self):
        first, second = _system("shirg", batch=2), _system("lavida-980", batch=2)
        pictures = [
            [chat[0]["content"][0]["image"].tobytes() for chat in system.chats()] for system in (first, second)
        ]
        assert pictures[0] == pictures[1]
        assert pictures[0][0] != pictures[0][1]

    @pytest.mark.parametrize(("preset", "tokens"), [("shirg", 245), ("lavida-full", 845), ("shirg-fixed", 228)])
    def test_facts_of_an_answer(self, preset, tokens):
        facts = _answer(_system(preset, batch=2)).facts
        prompt = facts["prompt_tokens"]
        assert facts == {
            "answers": 2,
            "image_tokens": tokens,
            "prompt_tokens": prompt,
            "new_tokens": 8,
            "forwards": 4,
            "prefix_bytes": 2 * 2 * 2 * prompt * 32 * 4,
        }

    def test_tokens_that_stand_for_nothing_are_no_image_tokens(self):
        facts = _answer(_system("shirg-adaptive")).facts
        assert 64 + 91 <= facts["image_tokens"] < 245

    def test_ratios_are_to_the_baseline(self):
        spreads = {"a": {"encode": spread([2.0]), "select": spread([0.0])}, "b": {"encode": spread([3.0])}}
        facts = {"a": {"prefix_bytes": 10}, "b": {}}
        found = ratios(spreads, facts, "a")
        assert found == {"a": {"encode": 1.0, "prefix_bytes": 1.0}, "b": {"encode": 1.5}}

    def test_an_unknown_baseline_names_what_there_is(self):
        with pytest.raises(ValueError, match="'c'.*a, b"):
            check_baseline("c", ["a", "b"])

    def test_peak_memory_is_that_of_the_tensors(self):
        model = _system().model
        megabyte = 1 << 20

        def run() -> None:
            torch.ones(megabyte // 4)
            both = [torch.ones(megabyte // 4), torch.ones(2 * megabyte // 4)]
            both.clear()
            torch.ones(megabyte // 4)

        memory = peak_memory(model, run)
        weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
        assert memory["weight_bytes"] == weights
        assert 3 * megabyte <= memory["activation_bytes"] < 3 * megabyte + 4096
        assert memory["peak_memory_bytes"] == weights + memory["activation_bytes"]

    def test_savings_of_a_smaller_cache(self):
        rows = with_variants([parse_row("shirg"), parse_row("lavida-980:steps=4")], ["prefix_kv=0.6"])
        labels = [row.label for row in rows]
        assert labels == ["shirg", "lavida-980:steps=4", "shirg:prefix_kv=0.6", "lavida-980:steps=4,prefix_kv=0.6"]
        assert smaller_caches(rows) == {labels[2]: labels[0], labels[3]: labels[1]}
        assert smaller_caches(rows[1:3]) == {}
        spreads = {"whole": {"step": spread([0.5])}, "small": {"step": spread([0.3]), "evict": spread([0.1])}}
        saved = prefix_savings(
            spreads, {"whole": {"prefix_bytes": 100}, "small": {"prefix_bytes": 60}}, {"small": "whole"}
        )
        assert saved["small"] == {
            "against": "whole",
            "evict_seconds": 0.1,
            "saved_bytes": 40,
            "kept_share": 0.6,
            "saved_step_seconds": pytest.approx(0.2),
        }


class TestSharedWeights:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_a_system_on_shared_weights_is_the_system_that_is_loaded(self, preset, tmp_path):
        source = tiny_model(tiny_config())
        source.save_pretrained(tmp_path)
        own = [each.data_ptr() for each in source.parameters()]
        torch.manual_seed(0)
        shared = under_system(source, preset)
        config = shared.config
        loaded = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, prune_method=preset).eval()
        for name in set(ShirgLavidaConfig.__annotations__) - {"vision_config", "text_config"}:
            assert getattr(config, name) == getattr(loaded.config, name), name
        if config.coordinate_embedding:  # its first layer is random, its last one zero
            loaded.model.coordinate_embedding.load_state_dict(shared.model.coordinate_embedding.state_dict())
        system = System(shared, tiny_processor(config), GENERATION, 1, (300, 260))
        inputs = encode(system.processor, *system.chats())
        with torch.no_grad():
            assert torch.equal(shared(**inputs).logits, loaded(**inputs).logits)
        assert [each.data_ptr() for each in source.parameters()] == own
        assert not any(each.is_meta for each in (*shared.parameters(), *shared.buffers()))
        assert {each.data_ptr() for each in shared.model.language_model.parameters()} <= set(own)

    def test_the_cpu_profile_is_of_36_million_weights_as_lavida(self):
        config = profile_config(PROFILES["cpu"], tiny_config()).with_preset("lavida")
        with torch.device("meta"):
            model = ShirgLavidaForConditionalGeneration(config)
        tower = model.model.vision_tower.vision_model
        extra = (tower.encoder.layers[-1], tower.head)  # which LaViDa deletes
        total = sum(each.numel() for each in model.parameters())
        assert round((total - sum(p.numel() for part in extra for p in part.parameters())) / 1e6) == 36


class TestSelectionCost:
    def test_every_method_has_a_system_of_its_own(self):
        for method in METHODS:
            assert tiny_config(own_system(method)).selection_method == method

    def test_the_exponent_of_a_power_law(self):
        assert fitted_exponent([256, 1024, 4096], [3 * n**1.5 for n in (256, 1024, 4096)]) == pytest.approx(1.5)

    def test_the_growth_that_the_readme_names(self):
        model = tiny_model(tiny_config())
        grown = {method: growth(model, method, repeats=1, grids=(12, 20, 28)) for method in METHODS}
        orders = {method: each.order for method, each in grown.items()}
        sentence = re.search(r"Choosing takes time linear .*? \(`shirg bench", README, flags=re.DOTALL)[0]
        told = re.split(r"linear|quadratic|more with", sentence)[1:]
        for order, names in zip(("linear", "quadratic", "more than quadratic"), told, strict=True):
            assert {method for method in METHODS if orders[method] == order} == set(re.findall(r"`(\w+)`", names))
        for each in grown.values():
            assert each.patches == [144, 400, 784]
            assert len(each.seconds) == len(each.signal_seconds) == 3 and min(each.seconds) > 0
        assert grown["shirg"].signal_seconds[0] > 0 == grown["random"].signal_seconds[0]

    def test_what_is_timed_ends_in_the_tokens(self, monkeypatch):
        gathered = []

        def gather(features: torch.Tensor, selection: Selection) -> torch.Tensor:
            gathered.append(merged_values(features, selection).shape)
            return features

        monkeypatch.setattr("modeling_shirg.evaluation.selection_cost.merged_values", gather)
        growth(tiny_model(tiny_config()), "fixed", repeats=1, grids=(12, 24))
        assert set(gathered) == {(48, 32), (192, 32)}  # a third of the patches, as shirg-fixed keeps

    def test_a_system_is_seen_without_an_answer(self):
        system = _system("shirg-mixed")
        run = see(system, system.chats(), StageClock())
        assert run.facts == {"image_tokens": 192}
        assert run.clock.seconds["select"] > 0 == run.clock.seconds["prefix"]
        assert run.clock.steps == []


class TestLimits:
    def test_a_floor_is_the_slower_of_bytes_and_products(self):
        system = _system()
        counts, facts = counted_stages(system)
        stages = {**dict.fromkeys(STAGES, {"median": 1.0}), "step": {"median": 0.5}}
        by_bytes = limits(system, stages, Rates(bytes_per_second=1e6, flops_per_second=1e30))
        by_flops = limits(system, stages, Rates(bytes_per_second=1e30, flops_per_second=1e9))
        cache = facts["forwards"] * facts["prefix_bytes"]
        assert by_bytes["denoise"]["floor"] == pytest.approx((counts["denoise"].weight_bytes + cache) / 1e6)
        assert by_bytes["prefix"]["floor"] == pytest.approx(counts["prefix"].weight_bytes / 1e6)
        assert by_flops["encode"]["floor"] == pytest.approx(counts["encode"].flops / 1e9)
        assert (by_bytes["encode"]["bound"], by_flops["encode"]["bound"]) == ("bytes", "flops")
        step = by_flops["step"]
        assert step["floor"] == pytest.approx(by_flops["denoise"]["floor"] / facts["forwards"])
        assert step["factor"] == pytest.approx(0.5 / step["floor"])
        assert by_flops["denoise"]["factor"] == pytest.approx(1.0 / by_flops["denoise"]["floor"])

    def test_a_step_reads_the_weights_of_the_language_model_once(self):
        system = _system()
        counts, facts = counted_stages(system)
        read = [*system.model.model.language_model.layers.parameters(), *system.model.lm_head.parameters()]
        norm, width = system.model.model.language_model.norm.weight, 32
        rows = 8 * width * 4  # of the response in the embedding table
        expected = sum(each.nbytes for each in read) + norm.nbytes + rows
        assert counts["denoise"].weight_bytes == facts["forwards"] * expected

    def test_the_machine_is_measured(self):
        rates = measure_rates(torch.device("cpu"), torch.float32, 2, copy_bytes=1 << 20, product_sides=(32, 64))
        assert rates.bytes_per_second > 1e6 and rates.flops_per_second > 1e6


class TestRows:
    def test_a_row_differs_in_its_batch_its_answer_and_its_config(self):
        row = parse_row("shirg:prefix-kv=0.6,batch=4,selection_budget=100,text_relevance=none,use_cache=true")
        assert (row.preset, row.batch) == ("shirg", 4)
        assert row.generation == {"prefix_kv": 0.6, "use_cache": True}
        assert row.options == {"selection_budget": 100, "text_relevance": "none"}

    def test_commas_of_a_json_value_separate_nothing(self):
        row = parse_row('shirg:calibration={"mean": 1, "std": 2},steps=4')
        assert row.options == {"calibration": {"mean": 1, "std": 2}} and row.generation == {"steps": 4}

    def test_a_row_given_twice_is_an_error_that_names_it(self):
        with pytest.raises(ValueError, match="^lavida-980: given more than once"):
            with_variants([parse_row("lavida-980"), parse_row("shirg"), parse_row("lavida-980")], [])

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("shrig", "'shrig'.*Did you mean 'shirg'"),
            ("shirg:prefix_kv", "FIELD=VALUE"),
            ("shirg:batch=0", "batch=0"),
            ("shirg:selection_budgt=3", "selection_budget"),
            ("shirg:steps=4,steps=8", "given twice"),
            ("shirg:steps=4,prefix_kv", "'4,prefix_kv' is no value"),
        ],
    )
    def test_what_is_wrong_with_a_row_is_named(self, text, said):
        with pytest.raises(ValueError, match=said):
            parse_row(text)

    def test_a_table_is_markdown(self):
        assert table(["a", "b"], [["x", 1], ["long", 22]]).splitlines() == [
            "| a    |  b |",
            "| ---- | -: |",
            "| x    |  1 |",
            "| long | 22 |",
        ]


def _bench(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["bench", "--profile", "toy", "--threads", "1", "--repeats", "1", "--warmup", "0", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[str, dict, Path]:
    """Standard output of one run, its last line as an object, and the file that it wrote."""
    out = tmp_path_factory.mktemp("bench") / "toy.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text, **kwargs: printed.append(text))
        patch.setattr("modeling_shirg.evaluation.limits._COPY_BYTES", {"cpu": 1 << 22})
        patch.setattr("modeling_shirg.evaluation.limits._PRODUCT_SIDES", {"cpu": (128,)})
        arguments = ["--systems", "lavida-980", "shirg", "--baseline", "lavida-980", "--prefix-kv", "0.6", "--limits"]
        counts = ["--profile", "toy", "--repeats", "2", "--threads", "1", "--steps", "3", "--out", str(out)]
        assert main(["bench", *counts, *arguments]) == 0
    return "\n".join(printed), json.loads(printed[-1]), out


class TestCommand:
    ROWS = ("lavida-980", "shirg", "lavida-980:prefix_kv=0.6", "shirg:prefix_kv=0.6")

    def test_the_last_line_is_one_object(self, told):
        _, result, out = told
        assert json.loads(out.read_text()) == result
        assert tuple(result["systems"]) == tuple(result["ratios"]) == tuple(result["facts"]) == self.ROWS
        for stages in result["systems"].values():
            assert set(stages) == {*STAGES, "step", "total"}
            assert all(each["min"] <= each["q1"] <= each["median"] <= each["max"] for each in stages.values())
            medians = [stages[name]["median"] for name in STAGES]
            assert sum(medians) == pytest.approx(stages["total"]["median"])  # of two repeats a median is the mean
        assert {result["facts"][name]["forwards"] for name in self.ROWS} == {3}

    def test_the_baseline_is_1_times_itself(self, told):
        ratios = told[1]["ratios"]["lavida-980"]
        assert {"total", "encode", "step", "peak_memory_bytes", "prefix_bytes"} <= set(ratios)
        assert set(ratios.values()) == {1.0}
        assert "select" not in ratios  # the baseline has none

    def test_the_cache_that_is_saved(self, told):
        saved = told[1]["prefix"]["shirg:prefix_kv=0.6"]
        assert saved["against"] == "shirg" and saved["evict_seconds"] > 0
        assert saved["kept_share"] == pytest.approx(0.6, abs=0.01)

    def test_where_and_how_it_was_measured(self, told):
        text, result, _ = told
        assert {"cpu", "cores", "threads", "gpu", "torch", "dtype", "date", "load_average"} <= set(result["machine"])
        assert result["machine"]["threads"] == 1 and result["machine"]["dtype"] == "float32"
        settings = result["settings"]
        assert (settings["profile"], settings["repeats"], settings["warmup"], settings["steps"]) == ("toy", 2, 1, 3)
        assert settings["weights"] == "random weights"
        rows = "--systems lavida-980 shirg --baseline lavida-980"
        options = "--limits --prefix_kv 0.6 --threads 1 --steps 3"
        assert settings["command"] == f"shirg bench --profile toy {rows} --repeats 2 {options}"
        assert "after 1 warm-up rounds that do not count" in text
        assert re.search(r"First answers: lavida-980 [\d.,]+ ms, shirg [\d.,]+ ms, ", text)

    def test_every_row_has_a_line_in_the_tables(self, told):
        text, result, _ = told
        for name in self.ROWS:
            assert text.count(f"| {name} ") >= 2
        assert "Selection of shirg: " in text and "Selection of lavida-980" not in text
        assert set(result["limits"]["systems"]["shirg"]) == {
            "encode", "select", "project", "prefix", "denoise", "step",
        }  # fmt: skip
        shares = [each["share"] for each in result["limits"]["operators"]["shirg"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1

    def test_threads_are_as_before(self, capsys):
        before = torch.get_num_threads()
        status, out, err = _bench(capsys, "--threads", str(before + 1), "--systems", "uniform", "--steps", "1")
        assert status == 0, err
        assert json.loads(out.splitlines()[-1])["machine"]["threads"] == before + 1
        assert torch.get_num_threads() == before

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--baseline", "lavida"], "'lavida' is none of the systems"),
            (["--systems", "shrig"], "Did you mean 'shirg'"),
            (["--repeats", "0"], "--repeats 0"),
            (["--profile", "gpu"], "accelerator"),
            (["--vocab_size", "100"], "vocab_size=100"),
            (["--points", "1", "2"], "--curve"),
            (["--curve", "batch", "--points", "2"], "two different"),
            (["--stage", "selection", "--systems", "shirg"], "--systems shirg"),
            (["--stage", "selection", "--limits"], "--limits"),
            (["--out", "nowhere/x.json"], "nowhere"),
            (["--device", "tpu"], "tpu"),
        ],
    )
    def test_what_does_not_fit_is_named(self, capsys, arguments, said):
        if "gpu" in arguments and torch.accelerator.is_available():
            pytest.skip("this machine has an accelerator")
        status, _, err = _bench(capsys, *arguments)
        assert status == 2 and said in err

    @pytest.mark.parametrize(
        ("axis", "points", "units"),
        [("batch", ("1", "2"), [1, 2]), ("tokens", ("3", "6"), [45, 180]), ("response", ("2", "4"), [2, 4])],
    )
    def test_a_curve_has_the_cost_per_unit(self, capsys, axis, points, units):
        status, out, err = _bench(
            capsys, "--curve", axis, "--points", *points, "--max_new_tokens", "4", "--steps", "4"
        )
        assert status == 0, err
        result = json.loads(out.splitlines()[-1])
        (each,) = result["curve"]["systems"].values()
        assert [point["units"] for point in each["points"]] == units
        for point in each["points"]:
            cost = sum(result["systems"][point["row"]][stage]["median"] for stage in CURVES[axis].stages)
            assert point["seconds"] == cost == pytest.approx(point["seconds_per_unit"] * point["units"])

    @pytest.mark.slow
    def test_every_selection_method_alone_and_in_its_system(self, capsys):
        status, out, err = _bench(capsys, "--stage", "selection")
        assert status == 0, err
        result = json.loads(out.splitlines()[-1])
        assert list(result["methods"]) == list(METHODS)
        assert list(result["systems"]) == [own_system(method) for method in METHODS]
        assert result["methods"]["shirg"]["patches"] == [256, 529, 1024, 2025, 4096]
        assert result["methods"]["saint"]["order"] == "quadratic"
        assert 0 < result["full_size"]["share"] <= 0.02

    def test_real_weights(self, capsys):
        folder = ROOT / "hub_card" / "shirg-lavida-tiny"
        status, out, err = _bench(capsys, "--model", str(folder), "--systems", "shirg", "--steps", "2")
        assert status == 0, err
        settings = json.loads(out.splitlines()[-1])["settings"]
        text = json.loads((folder / "config.json").read_text())["text_config"]
        assert settings["weights"] == str(folder) and settings["text"]["vocab_size"] == text["vocab_size"]
        assert _bench(capsys, "--model", str(folder), "--vocab_size", "4096")[0] == 2

    def test_systems_of_the_selection_stage_are_refused_before_any_work(self, capsys, monkeypatch):
        monkeypatch.setattr("modeling_shirg.running.systems.Bench", lambda *args: pytest.fail("a model was made"))
        status, _, err = _bench(capsys, "--stage", "selection", "--systems", "shirg")
        assert status == 2 and "--stage selection times every method; leave out --systems shirg" in err


class TestPage:
    def test_what_was_not_run_is_said_and_left_empty(self, told):
        results = {**dict.fromkeys(MEASUREMENTS), "cpu": told[1]}
        written = page(results, "## What was missed\n\nNothing.")
        assert written.count("Not run.") == len(MEASUREMENTS) - 1
        assert "## What was missed" in written
        for name, command in MEASUREMENTS.items():
            made = told[1]["settings"]["command"] if name == "cpu" else f"shirg bench {command}"
            assert f"## {name}\n\n`{made}`" in written
        rows = [line for line in aims_table(results).splitlines() if "gpu" in line.split("|")[2]]
        assert len(rows) == len(AIMS["gpu"])
        assert all("not run" in row and "met" not in row for row in rows)

    def test_aims_are_met_or_missed(self):
        def stages(total: float) -> dict:
            return {"total": {"median": total}, "select": {"median": 0.1}}

        systems = {"lavida-980": stages(2.0), "shirg": stages(1.6), "lavida-full": stages(3.0)}
        facts = {name: {"peak_memory_bytes": 10, "activation_bytes": 5} for name in systems}
        table = aims_table({"cpu": {"measured": "answers", "systems": systems, "facts": facts, "limits": None}})
        lines = [line for line in table.splitlines() if line.split("|")[2].strip() == "cpu"]
        assert "0.80" in lines[0] and "met" in lines[0]  # time over lavida-980
        assert "1.00" in lines[1] and "met" in lines[1]
        assert "0.53" in lines[3] and "**missed**" in lines[3]  # time over lavida-full
        assert "0.062" in lines[4] and "**missed**" in lines[4]  # selection

    def test_every_measurement_is_a_command_that_parses(self):
        from shirg_scripts.bench import parse_args

        for command in MEASUREMENTS.values():
            args = parse_args(command.split())
            for text in args.systems or []:
                parse_row(text)
        assert set(AIMS) <= set(MEASUREMENTS)
