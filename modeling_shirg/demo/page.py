"""The page: an image, a box on it, a question, one system or two, and what each of them did."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.running.overlay import enlargement
from modeling_shirg.serving import Limits
from modeling_shirg.serving.images import open_checked

from .asking import Asker, Draft, Question
from .pictures import Box, answer_html, box_of, draft_html, facts, pictures, with_box
from .uploads import UploadedFilesOnly

TITLE = "SHIRG: a diffusion model that looks where it matters"
HINT = "Tap two opposite corners on the picture to say where the fovea looks."
LEGEND = (
    "*kept*: views outlined, dropped patches dark, kept ones framed. *scores*: yellow is highest, violet lowest. "
    "Then the views as the model gets them. Tap one to enlarge it."
)
EMPTY = "Pick an example or upload an image first."
CSS = """
.draft, .answer { font-size: 1.15rem; line-height: 2; min-height: 2.4rem; overflow-wrap: anywhere; }
.answer { font-weight: 600; }
.draft span { padding: .1rem .15rem; border-radius: .25rem; margin-right: 1px; white-space: pre-wrap; }
.draft .mask { background: var(--neutral-300); padding: .1rem .6rem; }
.draft .filler { opacity: .4; }
.draft .fresh { background: #bbf7d0; color: #14532d; }
.tight { gap: .5rem; }
.gallery .grid-wrap { max-height: none !important; overflow: visible !important; }
.legend { font-size: .85rem; opacity: .7; }
#picture .wrap:has(.error), #hint .wrap:has(.error) { display: none !important; }
footer { display: none !important; }
"""
# The system's own fonts: the default theme would fetch some.
THEME_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


@dataclass
class Panel:
    """Where one system's answer is shown."""

    column: gr.Column
    heading: gr.Markdown
    answer: gr.HTML
    facts: gr.Markdown
    gallery: gr.Gallery

    @property
    def outputs(self) -> list[Any]:
        """The components that asking writes, in the order of `Page._ask_one`."""
        return [self.heading, self.answer, self.facts, self.gallery]


class Page:
    """Builds the page; `blocks` is what gradio launches.

    Args:
        asker: asks a system.
        systems: names to choose from, the first one chosen.
        examples: image files with a question each.
        note: what to know about the model, in Markdown.
        step_seconds: how long each step stays on the screen.
        limits: how large an uploaded image, and how long a question may be.
    """

    def __init__(
        self,
        asker: Asker,
        systems: Sequence[str],
        examples: Sequence[tuple[Path, str]],
        note: str = "",
        step_seconds: float = 0.25,
        limits: Limits | None = None,
    ):
        self.asker = asker
        self.examples = examples
        self.step_seconds = step_seconds
        self.limits = limits or Limits()
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            self._lay_out(list(systems), note)
            self._wire()
        self.blocks.queue(max_size=self.limits.max_requests, default_concurrency_limit=1)

    def launch(self, **arguments: Any) -> Any:
        """Start serving; arguments are gradio's."""
        uploads = Middleware(
            UploadedFilesOnly, folder=Path(get_upload_folder()), max_bytes=self.limits.max_request_bytes
        )
        return self.blocks.launch(
            theme=gr.themes.Default(**THEME_FONTS),
            css=CSS,
            max_file_size=self.limits.max_image_bytes,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [uploads]},
            **arguments,
        )

    def _lay_out(self, systems: list[str], note: str) -> None:
        gr.Markdown(f"## {TITLE}\n\n{note}")
        self.image, self.box, self.corner = (gr.State(None) for _ in range(3))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._lay_out_question(systems)
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    self.panels = [self._lay_out_panel(number) for number in range(2)]
                self.legend = gr.Markdown(LEGEND, visible=False, elem_classes="legend")

    def _lay_out_question(self, systems: list[str]) -> None:
        self.picture = gr.Image(interactive=False, show_label=False, height=300, buttons=[], elem_id="picture")
        self.hint = gr.Markdown(EMPTY, elem_id="hint")
        with gr.Row(elem_classes="tight"):
            self.upload = gr.UploadButton("Upload an image", file_types=["image"], size="sm", elem_id="upload")
            self.clear = gr.Button("Remove the box", size="sm", min_width=80)
        self.samples = gr.Dataset(
            components=[gr.Image(render=False)],
            samples=[[str(path)] for path, _ in self.examples],
            type="index",
            layout="gallery",
            label="Examples",
            elem_id="examples",
        )
        self.question = gr.Textbox(label="Question", lines=1, max_lines=3, elem_id="question")
        with gr.Row(elem_classes="tight"):
            self.system = gr.Dropdown(systems, value=systems[0], label="System", min_width=140, elem_id="system")
            self.other = gr.Dropdown(
                ["(none)", *systems], value="(none)", label="Compare with", min_width=140, elem_id="other"
            )
        self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Accordion("Budget and steps", open=False, elem_id="more"):
            self.budget = gr.Slider(
                10, 100, value=100, step=5, label="% of the tokens that the system selects", elem_id="budget"
            )
            self.steps = gr.Slider(0, 32, value=0, step=1, label="Denoising steps (0: as the checkpoint says)")

    def _lay_out_panel(self, number: int) -> Panel:
        with gr.Column(min_width=300, visible=number == 0, elem_id=f"panel-{number}") as column:
            return Panel(
                column,
                gr.Markdown(),
                gr.HTML(elem_id=f"answer-{number}"),
                gr.Markdown(elem_id=f"facts-{number}"),
                gr.Gallery(
                    show_label=False,
                    visible=False,
                    columns=2,
                    object_fit="contain",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id=f"gallery-{number}",
                    elem_classes="gallery",
                ),
            )

    def _wire(self) -> None:
        outputs = [self.legend, *(component for panel in self.panels for component in panel.outputs)]
        boxed, quietly = [self.box, self.corner, self.picture, self.hint], {"show_progress": "hidden"}
        self.upload.upload(self._opened, self.upload, [self.image, *boxed], **quietly)
        self.samples.click(self._example, self.samples, [self.image, *boxed, self.question], **quietly)
        # Every tap counts, however fast: they are taken in turn.
        self.picture.select(
            self._tapped, [self.image, self.box, self.corner], boxed, trigger_mode="multiple", **quietly
        )
        self.clear.click(self._cleared, self.image, boxed, **quietly)
        self.other.change(lambda name: gr.Column(visible=name != "(none)"), self.other, self.panels[1].column)
        inputs = [self.image, self.box, self.question, self.system, self.other, self.budget, self.steps]
        gr.on([self.ask.click, self.question.submit], self._ask, inputs, outputs, **quietly)

    # What happens

    def _opened(self, path: str) -> tuple:
        try:
            image = read_image(open_checked(Path(path).read_bytes(), self.limits.max_image_pixels))
        except ValueError as error:
            raise _refused(str(error)) from None
        return image, *self._cleared(image)

    def _example(self, index: int) -> tuple:
        path, question = self.examples[index]
        return *self._opened(str(path)), question

    def _tapped(self, image: Image.Image | None, box: Box | None, corner: tuple | None, event: gr.SelectData) -> tuple:
        """A box has two taps; the picture, which takes none while it is exchanged, changes after the second."""
        if image is None:
            return self._cleared(None)
        x, y = (place / enlargement(image) for place in event.index)
        if corner is None or x == corner[0] or y == corner[1]:
            return box, (x, y), gr.skip(), f"One corner is at {x:.0f}, {y:.0f}. Now tap the opposite one."
        box = box_of(corner, (x, y))
        return box, None, with_box(image, box), "The fovea looks here. Tap two corners for another box."

    def _cleared(self, image: Image.Image | None) -> tuple:
        """Without a box."""
        return (None, None, None, EMPTY) if image is None else (None, None, with_box(image, None), HINT)

    def _ask(
        self,
        image: Image.Image | None,
        box: Box | None,
        text: str,
        system: str,
        other: str,
        budget: float,
        steps: int,
    ) -> Iterator[dict]:
        if image is None:
            raise _refused(EMPTY)
        if not text.strip():
            raise _refused("Type a question.")
        if len(text) > self.limits.max_text_characters:
            raise _refused(f"A question has at most {self.limits.max_text_characters} characters, got {len(text)}.")
        question = Question(image, text.strip(), box, budget / 100, {"steps": steps} if steps else {})
        names = [system] if other == "(none)" else [system, other]
        for panel in self.panels:
            yield self._emptied(panel)
        for name, panel in zip(names, self.panels, strict=False):
            try:
                yield from self._ask_one(name, question, panel)
            except ValueError as error:
                raise _refused(f"{name}: {error}") from None

    def _emptied(self, panel: Panel) -> dict:
        return {panel.heading: "", panel.answer: "", panel.facts: "", panel.gallery: gr.Gallery(None, visible=False)}

    def _ask_one(self, name: str, question: Question, panel: Panel) -> Iterator[dict]:
        yield {panel.heading: f"### {name}", panel.answer: "<div class='draft'>Reading the image</div>"}
        before, step = None, 0
        for event in self.asker.ask(name, question):
            if isinstance(event, Draft):
                step += 1
                yield {panel.answer: draft_html(event, before, step), panel.facts: f"step {step}"}
                before = event
                time.sleep(self.step_seconds)
            else:
                image_processor = self.asker.system(name).processor.image_processor
                yield {
                    panel.answer: answer_html(event.answer.texts[0]),
                    panel.facts: facts(event),
                    panel.gallery: gr.Gallery(pictures(event, image_processor), visible=True),
                    self.legend: gr.Markdown(visible=True),
                }


def _refused(message: str) -> gr.Error:
    """What the visitor reads; the terminal gets no traceback of what is no fault of the program."""
    return gr.Error(message, print_exception=False)
