"""The model of lmms-eval, on local parquet without a network; skipped where lmms-eval is missing (extra `eval`)."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest

from command_runs import checkpoint, command
from modeling_shirg.evaluation.answer_log import Place, read_answers
from tiny_model import noise_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install lmms-eval"),
]

SUFFIX = "\nAnswer the question with a single word."
TASK = """
task: local_charts
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_visual: !function charts.visual
doc_to_text: !function charts.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
process_results: !function charts.score
metric_list:
  - {{metric: exact, aggregation: mean, higher_is_better: true}}
"""
FUNCTIONS = f"""
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + {SUFFIX!r}


def score(doc, results):
    return {{"exact": float(results[0].strip() == doc["answer"])}}
"""


def _rows(folder: Path) -> Path:
    rows = [{"question": f"How many {n}?", "answer": str(n), "type": "human_test"} for n in range(5)]
    filled = [{**row, "image": noise_image(number, 70, 40)} for number, row in enumerate(rows)]
    columns = dict.fromkeys(rows[0], datasets.Value("string")) | {"image": datasets.Image()}
    file = folder / "test-00000-of-00001.parquet"
    datasets.Dataset.from_list(filled, features=datasets.Features(columns)).to_parquet(file)
    return file


def test_lmms_eval_gets_the_answers_of_shirg_evaluate(tmp_path):
    (tmp_path / "local_charts.yaml").write_text(TASK.format(file=_rows(tmp_path)))
    (tmp_path / "charts.py").write_text(FUNCTIONS)
    base, system = checkpoint(), "shirg:prefix_kv=0.6,diversity_weight=0"
    arguments = f"pretrained={base},prune_method=shirg,device=cpu,steps=2,prefix_kv=0.6,diversity_weight=0"
    words = ["--model", "shirg", "--model_args", arguments, "--tasks", "local_charts", "--include_path", str(tmp_path)]
    words += ["--batch_size", "2", "--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    lmms_eval = [sys.executable, "-m", "lmms_eval", *words]
    done = subprocess.run(lmms_eval, capture_output=True, text=True, timeout=900, env=environment)
    # The command's status is 0 whatever happens: what it wrote tells.
    samples = sorted((tmp_path / "out").rglob("*samples_local_charts*.jsonl"))
    assert samples, (done.stdout + done.stderr)[-3000:]
    records = [json.loads(line) for line in samples[0].read_text().splitlines()]
    given = {record["doc_id"]: record["filtered_resps"] for record in records}
    words = ["--tasks", "chartqa", "--data", f"chartqa={tmp_path}", "--systems", system, "--max_new_tokens", "4"]
    words += ["--steps", "2", "--batch_size", "2", "--device", "cpu"]
    command("evaluate", "--model", str(base), "--out", str(tmp_path / "own"), *words)
    answers = read_answers(tmp_path / "own", Place("chartqa", system, "none"))
    assert given == {answer["row"]: answer["prediction"] for answer in answers} and len(given) == 5
