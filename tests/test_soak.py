"""A soak: the same request is always the same, wrong answers are seen, and the slope is the slope."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from configuration_shirg import PRESETS
from modeling_shirg.evaluation.soak import SoakRequest, answer, draw_request, growth_per_hour, soak
from shirg_scripts import soak as command
from shirg_scripts.soak import _load, _pictures


@pytest.fixture(scope="module")
def loaded():
    return {"shirg": _load("shirg")}


@pytest.fixture(scope="module")
def requests(loaded) -> list[SoakRequest]:
    """A few of system `shirg`: of each kind that it can have, small pictures."""
    drawn = [draw_request(0, index * len(PRESETS), loaded["shirg"][0].config) for index in range(6)]
    assert {request.system for request in drawn} == {"shirg"}
    return [
        replace(request, rows=tuple(row._replace(width=40, height=60) for row in request.rows), boxes=None)
        for request in drawn
    ]


def references(requests, loaded) -> list[list[str] | None]:
    return [
        None if request.bad else [answer(row, *loaded["shirg"], _pictures())[0] for row in request.alone()]
        for request in requests
    ]


def test_requests_are_a_function_of_seed_and_index_and_of_all_kinds(loaded):
    config = loaded["shirg"][0].config
    drawn = [draw_request(3, index, config) for index in range(110)]
    assert drawn[:9] == [draw_request(3, index, config) for index in range(9)]
    assert drawn[:9] != [draw_request(4, index, config) for index in range(9)]
    assert {request.system for request in drawn} == set(PRESETS)
    assert {request.bad for request in drawn} == {None, "image", "generation", "placeholder", "box"}
    assert {request.stream for request in drawn} == {True, False}
    assert any(request.budget for request in drawn) and any(request.boxes for request in drawn)
    assert all(len(request.rows) == 1 for request in drawn if request.stream)


def test_every_request_is_answered_as_its_rows_alone_and_bad_ones_are_refused(requests, loaded):
    expected = references(requests, loaded)
    results = soak(requests, expected, loaded, _pictures(), 1e9, seed=0)
    result = next(itertools.islice(results, len(requests) - 1, None))
    assert result.wrong == []
    assert len(result.samples) == len(requests)
    assert result.refused == sum(request.bad is not None for request in requests)
    assert result.rows == sum(len(request.rows) for request in requests if request.bad is None)
    assert result.features["batched"] and result.features["single"]


def test_a_wrong_answer_and_a_bad_request_that_is_answered_are_seen(requests, loaded):
    good = next(request for request in requests if request.bad is None)
    result = next(soak([good], [["something else"]], loaded, _pictures(), 1e9, seed=0))
    assert "something else" in result.wrong[0]
    result = next(soak([replace(good, bad="nothing")], [None], loaded, _pictures(), 1e9, seed=0))
    assert result.wrong == ["request 0 (shirg): its bad nothing was not refused"]
    refused = next(soak([replace(good, bad="image")], [None], loaded, _pictures(), 0, seed=0))
    assert refused.wrong == [] and refused.refused == 1
    unjust = next(soak([replace(good, generation={"steps": -1})], [[""]], loaded, _pictures(), 0, seed=0))
    assert "steps=-1 must be" in unjust.wrong[0]


def test_a_streamed_answer_is_what_the_streamer_heard(requests, loaded):
    streamed = next(request for request in requests if request.stream and request.bad is None)
    assert answer(streamed, *loaded["shirg"], _pictures()) == references([streamed], loaded)[0]


def test_the_slope_is_that_of_a_line_and_its_interval_covers_the_truth_as_often_as_it_says():
    seconds = np.linspace(0, 3600, 500)
    exact = growth_per_hour(list(zip(seconds, 100 + 7 * seconds / 3600, strict=True)))
    assert exact == pytest.approx((7, 7, 7))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        noisy = 50 - 3 * seconds / 3600 + rng.normal(size=500)
        slope = growth_per_hour(list(zip(seconds, noisy, strict=True)))
        covered += slope.low <= -3 <= slope.high
    assert 0.92 < covered / 400 < 0.98
    with pytest.raises(ValueError, match="at least 20 samples, got 3: soak for longer"):
        growth_per_hour([(0, 1), (1, 1), (2, 1)])


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--requests", "0"], ["--warm_up", "1"], ["--out", "no/x.md"]])
def test_wrong_arguments_end_at_once(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.parse_args(words)
    assert words[1] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_its_page(tmp_path, capsys):
    page = tmp_path / "soak.md"
    words = ["--minutes", "0.3", "--requests", "4", "--warm_up", "0", "--most_growth", "1e9", "--out", str(page)]
    assert command.main(command.parse_args(words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["wrong"] == [] and report["systems"] == len(PRESETS)
    assert f"One process answered {report['requests']:,} requests" in page.read_text()
    assert f"{report['slope']:+.2f} MiB/hour" in page.read_text()
