"""A minute of mixed requests to one server: every answer as alone, and memory stays flat. `pytest -m slow`."""

import base64
import gc
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import uvicorn
from PIL import Image

from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import BUNDLED, load
from modeling_shirg.scenes import scene
from modeling_shirg.serving import Limits
from modeling_shirg.serving.served_model import ServedLavida
from modeling_shirg.serving.server import build_app

SECONDS, THREADS = 60, 6
QUESTIONS = ("What is in cell 5?", "What is in cell 2?")
BOXES = (None, [[0.0, 0.0, 90.0, 90.0]])
STEPS = (None, 2, 4)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _body(image: Image.Image, question: str, boxes: list | None, steps: int | None) -> dict:
    file = BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": BUNDLED, "messages": [{"role": "user", "content": parts}], "fovea_boxes": boxes}
    return body | ({"generation_config": f'{{"steps": {steps}}}'} if steps else {})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    served = load().as_class(ServedLavida)
    app = build_app(served.model, served.processor, BUNDLED, Limits(max_requests=THREADS))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1/chat/completions"
        server.should_exit = True
        thread.join(10)


def test_a_minute_of_mixed_requests_gives_the_answers_of_single_runs_in_flat_memory(url):
    plain = load()
    requests, expected = [], []
    for index in range(6):
        image = scene("entity_grid", "validation", index).image
        question, boxes, steps = QUESTIONS[index % 2], BOXES[index // 2 % 2], STEPS[index % 3]
        options = {} if boxes is None else {"fovea_boxes": boxes}
        expected.append(ask(plain, [conversation(image, question)], options, steps=steps).texts[0])
        requests.append(_body(image, question, boxes, steps))
    assert len(set(expected)) >= 3
    start, counts, sizes = time.monotonic(), {"answered": 0, "refused": 0, "left": 0}, []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() - start < SECONDS:
            number, kind = draw.randrange(len(requests)), draw.choice(("answered", "answered", "refused", "left"))
            if kind == "answered":
                answer = httpx.post(url, json=requests[number], timeout=60).json()
                assert answer["choices"][0]["message"]["content"] == expected[number], number
            elif kind == "refused":
                assert httpx.post(url, json=requests[number] | {"seed": -1}, timeout=60).status_code == 400
            else:
                with httpx.stream("POST", url, json=requests[number] | {"stream": True}, timeout=60) as stream:
                    assert stream.status_code in (200, 429)
                    next(stream.iter_lines())
            counts[kind] += 1
            if seed == 0:
                gc.collect()
                sizes.append((time.monotonic() - start, _resident_bytes()))

    with ThreadPoolExecutor(THREADS - 1) as pool:
        list(pool.map(client, range(THREADS - 1)))
    assert min(counts.values()) > 5, counts
    early = max(size for seconds, size in sizes if seconds < SECONDS / 3)
    late = max(size for seconds, size in sizes if seconds > SECONDS * 2 / 3)
    assert late < early + 64 * 2**20, (early, late)
