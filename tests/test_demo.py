"""`shirg demo` in a real browser: load, ask, watch, see; a wrong file; a phone; and the ready Space."""

import contextlib
import functools
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import RepoCard
from PIL import Image

from command_runs import CommandError, command
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.demo.drafts import Asker, draft_html, image_options, result_html
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import Loaded, load
from modeling_shirg.running.overlay import draw_scores
from shirg_scripts import demo

EXAMPLES = Path(str(files("shirg_hub_card") / "examples"))
SPACE = Path(__file__).parents[1] / "hub_card" / "space"
QUESTION = "What is in cell 5?"
# Gradio's own use of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword):DeprecationWarning")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load()


def _text(loaded: Loaded, name: str = "grid.png", question: str = QUESTION, **options) -> str:
    return ask(loaded, [conversation(str(EXAMPLES / name), question)], options).texts[0]


@pytest.fixture
def image() -> Image.Image:
    return Image.open(EXAMPLES / "grid.png").convert("RGB")


# Behind the page


def test_who_stops_watching_ends_the_generation(loaded, image, monkeypatch):
    asked = []

    def answer(*args):
        asked.append("begun")
        try:
            return ask(*args)
        except InterruptedError:
            asked.append("ended")
            raise

    monkeypatch.setattr("modeling_shirg.demo.drafts.ask", answer)
    events = Asker(lambda name: loaded).ask("shirg", image, QUESTION)
    next(events)
    events.close()
    assert asked == ["begun", "ended"]


@pytest.mark.parametrize(
    ("preset", "arguments", "notes"),
    [
        ("shirg", {"fovea_boxes": [(0, 0, 9, 9)], "fovea_size": 336, "selection_budget": round(0.5 * 181)}, 0),
        ("lavida-980", {}, 2),
        ("visionzip", {"selection_budget": 120}, 1),
    ],
)
def test_box_budget_and_fovea_go_where_there_is_use_for_them(preset, arguments, notes):
    found, told = image_options(load(None, preset).model.config, (0, 0, 9, 9), 0.5, 1.5)
    assert found == arguments and len(told) == notes


def test_every_option_reaches_the_answer(loaded, image):
    *drafts, result = Asker(lambda name: loaded).ask("shirg", image, QUESTION, box=(0, 0, 40, 40), budget=0.5)
    assert "".join(drafts[-1]).strip() == result.answer.texts[0]
    assert result.answer.inputs["view_boxes"][0, 1].tolist() == [0, 0, 224, 224]
    assert "154 image tokens · 90 of 256 patches kept · 8 steps" in result_html(result)


def test_a_draft_shows_masks_and_marks_what_is_new():
    html = draft_html(["<b>", None, ""], [None, None, ""], 2)
    assert html.count('class="mask"') == 1 and 'class="fresh">&lt;b&gt;<' in html and 'class="token">&middot;' in html


def test_scores_are_coloured_from_violet_to_yellow_where_the_patches_are():
    halves = np.array([[0, 0, 0.5, 1], [0.5, 0, 0.5, 1]], dtype=np.float64)
    pixels = np.asarray(draw_scores(Image.new("RGB", (10, 10), "white"), halves, np.array([3.0, -1.0])), dtype=int)
    half = pixels.shape[1] // 2
    left, right = pixels[:, : half - 1].mean((0, 1)), pixels[:, half + 1 :].mean((0, 1))
    assert left[1] > right[1] + 60 and left[0] > left[2] + 60


# The command


def test_a_port_that_is_taken_and_a_host_that_is_none_are_named():
    for host, family in (("127.0.0.1", socket.AF_INET), ("[::1]", socket.AF_INET6)):
        with socket.create_server((host.strip("[]"), 0), family=family) as taken:
            flags = f"--host {host} --port {taken.getsockname()[1]}"
            with pytest.raises(CommandError, match=re.escape(f"{flags}: Address already in use")):
                command("demo", *flags.split())
    with pytest.raises(CommandError, match="--host nosuch.invalid --port 7860"):
        command("demo", "--host", "nosuch.invalid")


# What is asked


@pytest.mark.parametrize("system", ["shirg", "lavida"])
def test_a_question_that_is_too_long_is_refused_before_the_model_runs(system, image, monkeypatch):
    gr, module = pytest.importorskip("gradio"), pytest.importorskip("modeling_shirg.demo.demo_page")
    page = module.DemoPage(Asker(lambda name: load(None, name)), [system], [])
    monkeypatch.setattr(
        ShirgLavidaForConditionalGeneration, "generate", lambda *args, **kwargs: pytest.fail("the model was asked")
    )
    for text, said in (("x " * 100_000, "at most 100000 characters, got 200000"), ("x " * 2_000, "positions")):
        with pytest.raises(gr.Error, match=said):
            list(page.answers(image, None, text, system, "(none)", 100, 100))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# What is uploaded


CHART_QUESTION = "What is the value of point S?"
UPLOADED = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """The URLs that gradio went to fetch."""
    found = []

    async def download(url: str, cache_dir: str) -> str:
        found.append(url)
        raise ConnectionError(url)

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    monkeypatch.setattr("gradio.processing_utils.save_url_to_cache", lambda url, *args, **kwargs: found.append(url))
    return found


@pytest.mark.parametrize(
    "file",
    [
        {"path": "http://example.com/cat.png"},
        {"path": "https://example.com/cat.png", "url": None},
        {"url": "http://example.com/cat.png"},
        {"path": "/etc/passwd"},
        {"path": "UPLOAD/../../../etc/passwd"},
        {"path": "a\0b"},
        {"path": 3},
    ],
    ids=repr,
)
def test_only_an_uploaded_file_is_read_and_no_url_is_fetched(address, downloads, file):
    path = _upload(address)
    file = {name: value.replace("UPLOAD", path) if isinstance(value, str) else value for name, value in file.items()}
    file |= UPLOADED
    questions = {
        "call/opened": {"data": [file]},
        "call/v2/opened": {"path": file},
        "queue/join": {"data": [file], "fn_index": 0, "session_hash": "a"},
        "call/answers": {"data": [None, None, [{"deep": file}], "shirg", "(none)", 100, 100]},
    }
    for route, body in questions.items():
        for kind in ("application/json", "text/plain"):
            headers = {"content-type": kind}
            answer = httpx.post(f"{address}/gradio_api/{route}", content=json.dumps(body), headers=headers)
            assert answer.status_code == 400 and "no URL, is read" in answer.json()["detail"], route
    assert downloads == []


TWO_KINDS = [("content-type", "application/json"), ("content-type", "multipart/form-data")]
NAMES_A_URL = json.dumps({"data": [{"path": "http://example.com/cat.png"} | UPLOADED]}).encode()


@pytest.mark.parametrize(
    ("body", "status"), [(NAMES_A_URL, 400), (b"[" * 100_000, 400), (b"\xff", 400), (b" " * (32 * 2**20 + 1), 413)]
)
def test_what_is_no_json_or_too_large_is_refused_and_a_second_type_hides_nothing(address, downloads, body, status):
    answer = httpx.post(f"{address}/gradio_api/call/opened", content=body, headers=TWO_KINDS)
    assert answer.status_code == status and downloads == []


def _upload(address: str) -> str:
    name = EXAMPLES / "grid.png"
    return httpx.post(f"{address}/gradio_api/upload", files={"files": ("grid.png", name.read_bytes())}).json()[0]


@pytest.mark.parametrize("url", ["ADDRESS/gradio_api/file=UPLOAD", "http://example.com/gradio_api/file=UPLOAD", None])
def test_an_uploaded_file_is_read_whatever_address_comes_with_it(address, downloads, url):
    path = _upload(address)
    url = url and url.replace("ADDRESS", address).replace("UPLOAD", path)
    file = {"path": path, "url": url} | UPLOADED
    event = httpx.post(f"{address}/gradio_api/call/opened", json={"data": [file]}).json()["event_id"]
    events = httpx.get(f"{address}/gradio_api/call/opened/{event}", timeout=60).text
    assert "event: complete" in events and "event: error" not in events
    assert downloads == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_uploads_are_gone_when_the_command_has_ended(tmp_path, stop):
    pytest.importorskip("gradio")
    port = _free_port()
    command = [sys.executable, "-m", "shirg_scripts.cli", "demo", "--port", str(port), "--systems", "shirg"]
    variables = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    # A shell that started the tests in the background has them, and what they start, ignore SIGINT.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=variables | {"TMPDIR": str(tmp_path)}, preexec_fn=heard)
    path, deadline = None, time.monotonic() + 120
    try:
        while path is None:
            assert process.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(httpx.TransportError):
                path = Path(_upload(f"http://127.0.0.1:{port}"))
            time.sleep(0.2)
        assert path.is_file() and path.is_relative_to(tmp_path)
        process.send_signal(stop)
        process.wait(30)
    finally:
        process.kill()
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.glob("shirg-demo-*"))


# In a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        on_path = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        found = os.environ.get("SHIRG_CHROMIUM", on_path)
        if not Path(found).exists():
            pytest.skip("no Chromium: apt-get install chromium, playwright install chromium, or set SHIRG_CHROMIUM")
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio")
    port = _free_port()
    page = demo.build_page(demo.parse_args(["--systems", "shirg", "lavida-980"]))
    page.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.blocks.close()


def _open(browser, address: str, viewport: dict):
    page = browser.new_page(viewport=viewport)
    page.set_default_timeout(30_000)
    page.goto(address)
    page.wait_for_selector("#ask")
    return page


def _pick_example(page, number: int) -> None:
    page.locator("#examples img").nth(number).click()
    page.wait_for_selector("#picture img")
    page.get_by_text("Tap two opposite corners").wait_for()


def _ask(page) -> None:
    page.locator("#ask").click()


def _answers(page, panels: int = 1) -> list[str]:
    """The answers of so many panels, once they are whole."""
    for number in range(panels):
        page.locator(f"#answer-{number} .facts", has_text="image tokens").wait_for()
    return [page.locator(f"#answer-{number} .answer").inner_text() for number in range(panels)]


def test_ask_watch_and_see(browser, address, loaded):
    page = _open(browser, address, DESK)
    outside, errors = [], []
    page.on("request", lambda request: outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    _pick_example(page, 0)
    page.evaluate(
        "window.drafts = []; new MutationObserver(() => {"
        " const draft = document.querySelector('#answer-0 .draft[data-step]');"
        " if (draft) window.drafts.push([draft.dataset.step, draft.querySelectorAll('.mask').length].join());"
        "}).observe(document.body, {childList: true, subtree: true, characterData: true})"
    )
    _ask(page)
    assert _answers(page) == [_text(loaded)]
    seen = list(dict.fromkeys(page.evaluate("window.drafts")))
    assert len(seen) >= 4 and set(seen) <= {f"{step},{8 - step}" for step in range(1, 9)}
    assert "245 image tokens · 181 of 256 patches kept · 8 steps" in page.locator("#answer-0 .facts").inner_text()
    captions = page.locator("#gallery-0 .caption-label")
    captions.nth(1).wait_for()
    assert captions.all_inner_texts() == ["kept patches", "yellow: high score"]
    page.wait_for_function("[...document.querySelectorAll('#gallery-0 img')].every(each => each.naturalWidth > 0)")
    assert not errors
    assert not [url for url in outside if not url.startswith((address, "data:", "blob:"))]


def test_a_tapped_box_moves_the_fovea_and_two_systems_stand_side_by_side(browser, address, loaded):
    page = _open(browser, address, DESK)
    _pick_example(page, 1)
    place = page.locator("#picture img").bounding_box()
    for share, hint in ((0.7, "Now tap the opposite one."), (0.95, "The fovea looks here.")):
        page.mouse.click(place["x"] + share * place["width"], place["y"] + share * place["height"])
        page.get_by_text(hint).wait_for()
    page.locator("#other input").click()
    page.get_by_role("option", name="lavida-980").click()
    page.wait_for_selector("#panel-1")
    _ask(page)
    answers = _answers(page, 2)
    side = Image.open(EXAMPLES / "chart.png").width
    box = tuple(share * side for share in (0.7, 0.7, 0.95, 0.95))
    assert answers[0] == _text(loaded, "chart.png", CHART_QUESTION, fovea_boxes=[box])
    assert answers[1] == _text(load(None, "lavida-980"), "chart.png", CHART_QUESTION)
    assert "its box and size were not used" in page.locator("#answer-1 .facts").inner_text()
    assert page.locator("#panel-0").bounding_box()["y"] == page.locator("#panel-1").bounding_box()["y"]


def test_a_file_that_is_no_image_and_no_question_are_errors_that_say_so(browser, address, tmp_path):
    page = _open(browser, address, DESK)
    page.locator("#ask").click()
    page.get_by_text("Pick an example or upload an image first.").nth(1).wait_for()
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    page.locator("input[type=file]").first.set_input_files(broken)
    page.get_by_text("This is no image file that can be read").wait_for()
    assert page.locator("#picture img").count() == 0
    page.locator("input[type=file]").first.set_input_files(EXAMPLES / "shapes.png")
    page.wait_for_selector("#picture img")
    page.locator("#ask").click()
    page.get_by_text("Type a question.").wait_for()
    Image.new("1", (60_000, 1_000)).save(tmp_path / "large.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
    page.get_by_text("The image has 60000x1000 pixels").wait_for()
    assert page.locator("#picture img").is_visible() and not page.locator("#picture .error").is_visible()
    page.get_by_label("Question").fill("What color is the triangle?")
    _ask(page)
    assert _answers(page) == ["blue"]


def test_it_fits_a_phone(browser, address):
    page = _open(browser, address, PHONE)
    _pick_example(page, 2)
    _ask(page)
    _answers(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for part in ("#picture", "#question", "#ask", "#answer-0", "#gallery-0"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"], part
    assert page.locator("#ask").bounding_box()["y"] < page.locator("#answer-0").bounding_box()["y"]


def test_two_people_see_each_their_own(browser, address):
    pages = [_open(browser, address, DESK) for _ in range(2)]
    for number, page in zip((0, 3), pages, strict=True):
        _pick_example(page, number)
    for page in pages:
        _ask(page)
    assert [_answers(page) for page in pages] == [["N"], ["blue"]]


# The Space


def test_the_space_is_complete_and_builds_the_page():
    data = RepoCard.load(SPACE / "README.md", repo_type="space", ignore_metadata_errors=False).data
    gradio = pytest.importorskip("gradio")
    assert data.sdk == "gradio" and (SPACE / data.app_file).is_file()
    assert data.sdk_version.split(".")[0] == gradio.__version__.split(".")[0]
    assert "shirg-lavida[demo]" in (SPACE / "requirements.txt").read_text()
    page = runpy.run_path(str(SPACE / data.app_file))["page"]
    assert isinstance(page.blocks, gradio.Blocks)


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("modeling_shirg.running.extras.find_spec", lambda name: None if name == "gradio" else object())
    with pytest.raises(CommandError, match=r"pip install 'shirg-lavida\[demo\]'"):
        command("demo")
