"""The page: an image, a box on it, a question, one system or two, and the way to each answer."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.running.overlay import enlargement
from modeling_shirg.serving import Limits
from modeling_shirg.serving.request_images import open_checked

from .drafts import Asker, Box, Result, draft_html, pictures, result_html, with_box
from .uploads import UploadedFilesOnly

TITLE = "SHIRG: a diffusion model that looks where it matters"
HINT = "Tap two opposite corners on the picture to say where the fovea looks."
STEP_SECONDS = 0.25  # how long each step of an answer stays on the screen
EMPTY = "Pick an example or upload an image first."
CSS = """
.draft, .answer { font-size: 1.15rem; line-height: 2; min-height: 2.4rem; overflow-wrap: anywhere; }
.answer { font-weight: 600; }
.draft span { padding: .1rem .15rem; border-radius: .25rem; margin-right: 1px; white-space: pre-wrap; }
.draft .mask { background: var(--neutral-300); padding: .1rem .6rem; }
.draft .fresh { background: #bbf7d0; color: #14532d; }
.gallery .grid-wrap { max-height: none !important; overflow: visible !important; }
#picture .wrap:has(.error), #hint .wrap:has(.error) { display: none !important; }
"""


class DemoPage:
    """The page as gradio's `blocks`.

    `examples` are image files with a question each, `note` is Markdown about the model.
    """

    def __init__(self, asker: Asker, systems: Sequence[str], examples: Sequence[tuple[Path, str]], note: str = ""):
        self.asker, self.examples, self.limits = asker, examples, Limits()
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            gr.Markdown(f"## {TITLE}\n\n{note}")
            self.image, self.box, self.corner = (gr.State(None) for _ in range(3))
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._lay_out_question(list(systems))
                with gr.Column(scale=3, min_width=320), gr.Row():
                    self.panels = [self._lay_out_panel(number) for number in range(2)]
            self._wire()
        self.blocks.queue(max_size=self.limits.max_requests, default_concurrency_limit=1)

    def launch(self, **arguments: Any) -> Any:
        """Start serving; arguments are gradio's."""
        folder, max_bytes = Path(get_upload_folder()), self.limits.max_request_bytes
        return self.blocks.launch(
            # The system's own fonts: the default theme would fetch some.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            max_file_size=self.limits.max_image_bytes,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(UploadedFilesOnly, folder=folder, max_bytes=max_bytes)]},
            **arguments,
        )

    def _lay_out_question(self, systems: list[str]) -> None:
        self.picture = gr.Image(interactive=False, show_label=False, height=300, buttons=[], elem_id="picture")
        self.hint = gr.Markdown(EMPTY, elem_id="hint")
        self.upload = gr.UploadButton("Upload an image", file_types=["image"], size="sm", elem_id="upload")
        samples, pictured = [[str(path)] for path, _ in self.examples], [gr.Image(render=False)]
        named = {"label": "Examples", "elem_id": "examples"}
        self.samples = gr.Dataset(components=pictured, samples=samples, type="index", layout="gallery", **named)
        self.question = gr.Textbox(label="Question", lines=1, max_lines=3, elem_id="question")
        with gr.Row():
            self.system = gr.Dropdown(systems, value=systems[0], label="System", min_width=140, elem_id="system")
            choices = ["(none)", *systems]
            self.other = gr.Dropdown(choices, value="(none)", label="Compare with", min_width=140, elem_id="other")
        self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
        self.budget = gr.Slider(10, 100, value=100, step=5, label="% of the tokens that the system selects")
        self.fovea = gr.Slider(100, 200, value=100, step=25, label="% of the fovea's side")

    def _lay_out_panel(self, number: int) -> tuple[gr.Column, gr.HTML, gr.Gallery]:
        with gr.Column(min_width=300, visible=number == 0, elem_id=f"panel-{number}") as column:
            told = gr.HTML(elem_id=f"answer-{number}")
            shown = {"show_label": False, "visible": False, "columns": 2, "interactive": False, "height": "auto"}
            gallery = gr.Gallery(**shown, buttons=["fullscreen"], elem_id=f"gallery-{number}", elem_classes="gallery")
        return column, told, gallery

    def _wire(self) -> None:
        boxed, quietly = [self.box, self.corner, self.picture, self.hint], {"show_progress": "hidden"}
        self.upload.upload(self.opened, self.upload, [self.image, *boxed], **quietly)
        self.samples.click(self.example, self.samples, [self.image, *boxed, self.question], **quietly)
        # Every tap counts, however fast: taps are taken in turn.
        taps = {"trigger_mode": "multiple", **quietly}
        self.picture.select(self.tapped, [self.image, self.box, self.corner], boxed, **taps)
        self.other.change(lambda name: gr.Column(visible=name != "(none)"), self.other, self.panels[1][0])
        inputs = [self.image, self.box, self.question, self.system, self.other, self.budget, self.fovea]
        outputs = [*self.panels[0][1:], *self.panels[1][1:]]
        gr.on([self.ask.click, self.question.submit], self.answers, inputs, outputs, **quietly)

    def opened(self, path: str) -> tuple:
        try:
            image = read_image(open_checked(Path(path).read_bytes(), self.limits.max_image_pixels))
        except ValueError as error:
            raise _refused(str(error)) from None
        return image, None, None, with_box(image, None), HINT

    def example(self, index: int) -> tuple:
        path, question = self.examples[index]
        return *self.opened(str(path)), question

    def tapped(self, image: Image.Image, box: Box | None, corner: tuple | None, event: gr.SelectData) -> tuple:
        # The picture takes no tap while it is exchanged, so it changes after the second tap only.
        x, y = (position / enlargement(image) for position in event.index)
        if corner is None or x == corner[0] or y == corner[1]:
            return box, (x, y), gr.skip(), f"One corner is at {x:.0f}, {y:.0f}. Now tap the opposite one."
        box = min(x, corner[0]), min(y, corner[1]), max(x, corner[0]), max(y, corner[1])
        return box, None, with_box(image, box), "The fovea looks here. Tap two corners for another box."

    def answers(
        self, image: Image.Image | None, box: Box | None, text: str, system: str, other: str, *shares: float
    ) -> Iterator[dict]:
        """The answers of one system or two, step by step; `shares` are budget and fovea in %."""
        if image is None:
            raise _refused(EMPTY)
        if not text.strip():
            raise _refused("Type a question.")
        if len(text) > self.limits.max_text_characters:
            raise _refused(f"A question has at most {self.limits.max_text_characters} characters, got {len(text)}.")
        options = {"box": box, "budget": shares[0] / 100, "fovea": shares[1] / 100}
        for _, told, gallery in self.panels:
            yield {told: "", gallery: gr.Gallery(None, visible=False)}
        for name, (_, told, gallery) in zip((system, other), self.panels, strict=True):
            if name == "(none)":
                continue
            heading, before, step = f"<h3>{name}</h3>", None, 0
            yield {told: f"{heading}<div class='draft'>Reading the image</div>"}
            try:
                for event in self.asker.ask(name, image, text.strip(), **options):
                    if isinstance(event, Result):
                        yield {told: heading + result_html(event), gallery: gr.Gallery(pictures(event), visible=True)}
                        break
                    step += 1
                    yield {told: heading + draft_html(event, before, step)}
                    before = event
                    time.sleep(STEP_SECONDS)
            except ValueError as error:
                raise _refused(f"{name}: {error}") from None


def _refused(message: str) -> gr.Error:
    """An error that the visitor reads, without a traceback in the terminal."""
    return gr.Error(message, print_exception=False)
