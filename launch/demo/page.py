"""`flamingo demo`: a page of this machine, on which a person builds a prompt and watches a model write."""

import contextlib
import os
import pathlib
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator

import anyio
import gradio as gr
import jinja2
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from flamingo_jax.errors import UserError
from flamingo_jax.inference.beam import Beams
from flamingo_jax.inference.sampling import GREEDY, Sampling
from launch.demo.prompt import is_upload, read_parts
from launch.demo.uploads import MOST_BYTES, read_upload
from launch.demo.writing import MOST_BEAMS, MOST_NEW_TOKENS, Prompt, Writer, Written, make_prompt, open_writer, write
from launch.report.page import MEDIA_COLORS, MINUS, picture

warnings.filterwarnings("ignore", module=r"gradio\.")  # of what its own dependencies will drop

HERE = pathlib.Path(__file__).parent
GREEDILY, DRAWN, SEARCHED = "Greedy", "Sampling", "Beam search"
LARGEST_SEED = 2**31 - 1
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
FIXED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
# Whatever Gradio's own page may name, a browser asks nobody but this server.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'none'; base-uri 'self'"
SHOW_ANSWER = """() => {
  clearInterval(window.stopping);
  document.querySelector("#answer").scrollIntoView({block: "nearest", behavior: "smooth"});
}"""
# Words that are on their way when somebody stops still come, and would show the answer as if it went on.
STOPPED = """() => {
  const stop = () => document.querySelectorAll(".answer.writing").forEach(answer => {
    answer.classList.replace("writing", "done");
    answer.querySelector(".status").textContent += " Stopped.";
  });
  stop();
  clearInterval(window.stopping);
  window.stopping = setInterval(stop, 100);
}"""


class WithPolicy:
  """Adds the policy to whatever is answered."""

  def __init__(self, app):
    self.app = app

  async def __call__(self, scope, receive, send):
    async def send_with_policy(message):
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
      await send(message)

    await self.app(scope, receive, send_with_policy)


def serve(checkpoint: str, host: str, port: int) -> None:
  """Serves the page until it is interrupted.

  Args:
    checkpoint: the work directory of a run, or the folder of an imported Flamingo.
    host: the address to listen at.
    port: of it.

  Raises:
    UserError: there is no such model, or nothing can listen there.
  """
  with serving(checkpoint, host, port) as address, contextlib.suppress(KeyboardInterrupt):
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    threading.Event().wait()


@contextlib.contextmanager
def serving(checkpoint: str, host: str, port: int) -> Iterator[str]:
  """The page's address, which answers inside; afterwards all uploads are gone. Raises as `serve` does."""
  check_free(host, port)
  writer = open_writer(checkpoint)
  with tempfile.TemporaryDirectory(prefix="flamingo-demo-") as uploads:
    os.environ["GRADIO_TEMP_DIR"] = uploads
    ask_directly(host)
    page = make_page(writer, pathlib.Path(uploads))
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      prevent_thread_lock=True,
      quiet=True,
      share=False,
      ssr_mode=False,
      footer_links=[],
      max_file_size=MOST_BYTES,
      theme=theme(),
      css=style(),
      app_kwargs=dict(middleware=[Middleware(WithPolicy)]),
    )
    try:
      yield address
    finally:
      page.close(verbose=False)


def ask_directly(host: str) -> None:
  """Keeps this process's requests to its own page, with which Gradio sees whether it is there, from a proxy."""
  known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
  hosts = ",".join(filter(None, (known, host, "localhost")))  # which Gradio asks for 0.0.0.0
  os.environ.update(no_proxy=hosts, NO_PROXY=hosts)


def check_free(host: str, port: int) -> None:
  """Raises UserError where nothing can listen, before a model is read in vain."""
  try:
    socket.create_server((host, port)).close()
  except (OSError, OverflowError) as error:
    raise UserError(
      f"{host}:{port}: nothing can listen there ({error}). Give another --port, or another --host."
    ) from error


def make_page(writer: Writer, uploads: pathlib.Path) -> gr.Blocks:
  """The page of a model.

  Args:
    writer: the model.
    uploads: where what a browser sends lies.
  """

  async def look(path: str) -> dict:
    return await anyio.to_thread.run_sync(shown_upload, writer, uploads, path)

  def answer(value, mode, temperature, top_k, top_p, seed, beams, length_penalty, new_tokens):
    try:
      if None in (temperature, top_k, top_p, seed, beams, length_penalty, new_tokens):
        raise UserError("A setting is empty. Fill it in.")
      how = decoding(mode, temperature, top_k, top_p, beams, length_penalty)
      prompt = make_prompt(writer, read_parts(value, uploads))
      yield from shown(writer, prompt, how, int(new_tokens), seed)
    except UserError as error:
      yield rendered("answer", fault=message(error, uploads)), gr.skip()

  with gr.Blocks(title=f"Flamingo: {writer.path}", analytics_enabled=False, fill_width=True) as page:
    gr.HTML(rendered("header", writer=writer))
    with gr.Row():
      with gr.Column(scale=6, min_width=320):
        prompt = gr.HTML(
          [],
          html_template=(HERE / "editor.html").read_text(),
          js_on_load=(HERE / "editor.js").read_text(),
          server_functions=[look],
          most_bytes=MOST_BYTES,
          apply_default_css=False,
          elem_id="prompt",
        )
        settings = make_settings()
        with gr.Row():
          start = gr.Button("Write", variant="primary", elem_id="write")
          stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=0)
      with gr.Column(scale=5, min_width=320):
        written = gr.HTML(rendered("answer"), apply_default_css=False, elem_id="answer")
        sight = gr.HTML(rendered("sight", prompt=None), apply_default_css=False, elem_id="sight")
        gr.HTML(rendered("gates", **gate_rows(writer.gates)), apply_default_css=False, elem_id="gates")
    for on in (start.click, prompt.submit):  # first: Gradio calls what comes second when the answer has ended
      on(None, js=SHOW_ANSWER)
    events = [
      on(answer, [prompt, *settings], [written, sight], show_progress="hidden", api_visibility="private")
      for on in (start.click, prompt.submit)
    ]
    stop.click(None, js=STOPPED, cancels=events)
  return page.queue(max_size=32)


def make_settings() -> list[gr.components.Component]:
  """How to write, in the order of the arguments of `answer`; the style hides what the mode does not use."""
  mode = gr.Radio([GREEDILY, DRAWN, SEARCHED], value=GREEDILY, label="Decoding", elem_id="mode")
  with gr.Group(elem_id="drawing"):
    with gr.Row():
      temperature = gr.Slider(0.05, 2, 0.7, step=0.05, label="Temperature", min_width=240)
      top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", min_width=240)
    with gr.Row():
      top_k = gr.Number(0, label="Top-k (0: all)", precision=0, minimum=0)
      seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
  with gr.Row(elem_id="searching"):
    beams = gr.Slider(2, MOST_BEAMS, 3, step=1, label="Beams", min_width=240)
    length_penalty = gr.Slider(-2, 2, 1, step=0.1, label="Length penalty", min_width=240)
  new_tokens = gr.Slider(1, MOST_NEW_TOKENS, 32, step=1, label="New tokens, at most")
  return [mode, temperature, top_k, top_p, seed, beams, length_penalty, new_tokens]


def decoding(
  mode: str, temperature: float, top_k: int, top_p: float, beams: int, length_penalty: float
) -> Sampling | Beams:
  """What is chosen on the page; what its mode does not use counts for nothing. Raises UserError out of range."""
  if mode == DRAWN:
    return Sampling(temperature, top_k, top_p)
  return Beams(int(beams), length_penalty) if mode == SEARCHED else GREEDY


def shown_upload(writer: Writer, uploads: pathlib.Path, path: object) -> dict:
  """What the page shows of a file that has come: its name and frames, or why it is refused and deleted."""
  if not isinstance(path, str) or not is_upload(path, uploads):
    return dict(fault="No such file was uploaded.")
  file = pathlib.Path(path)
  try:
    frames = read_upload(file, writer.config.frames, writer.frames_per_second)
  except UserError as error:
    file.unlink(missing_ok=True)
    return dict(fault=str(error))
  return dict(name=file.name, frames=[picture(frame, max(frame.shape)) for frame in frames])


def shown(
  writer: Writer, prompt: Prompt, how: Sampling | Beams, new_tokens: int, seed: int
) -> Iterator[tuple[str, object]]:
  """What is written and who sees what, as HTML, each time that there is something new. Raises UserError as `write`."""
  previous = writer.config.cross_attention.previous_media
  reading = f"Reading {counted(prompt.tokens, 'token')} and {counted(len(prompt.media), 'picture')}. "
  reading += "The first prompt of a size takes longer: its program is compiled."
  yield rendered("answer", state="writing", status=reading), rendered("sight", prompt=prompt, previous=previous)
  began, last = time.perf_counter(), Written("", 0, False)
  for last in write(writer, prompt, how, new_tokens, seed):
    status = f"{counted(last.tokens, 'token')}."
    yield rendered("answer", state="writing", text=last.text.strip(), status=status), gr.skip()
  seconds = time.perf_counter() - began
  why = "The model ended there." if last.ended else "There was no room for more."
  status = f"{counted(last.tokens, 'token')} in {seconds:.1f} s. {why}"
  sight = rendered("sight", prompt=prompt, previous=previous, written=last.text)
  yield rendered("answer", state="done", text=last.text.strip(), status=status), sight


def counted(count: int, noun: str) -> str:
  return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def message(error: UserError, uploads: pathlib.Path) -> str:
  """An error without the folders of this machine that uploads lie in: only their names are the person's own."""
  text = str(error)
  for folder in uploads.resolve().iterdir():
    text = text.replace(f"{folder}{os.sep}", "")
  return text


def gate_rows(gates: dict[str, float]) -> dict:
  """The gates of each layer, and the length of the longest bar."""
  rows: dict[int, dict[str, float]] = {}
  for name, value in gates.items():
    _, kind, layer = name.split("/")
    rows.setdefault(int(layer), {})[kind] = value
  return dict(rows=sorted(rows.items()), top=max(map(abs, gates.values()), default=0) or 1)


def signed(value: float) -> str:
  return f"{value:+.3f}".replace("-", MINUS)


def rendered(name: str, **values) -> str:
  """A template of this folder; all that it is given is escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters.update(picture=picture, signed=signed)
  return environment.get_template(f"{name}.html.j2").render(colors=len(MEDIA_COLORS), **values)


def theme() -> gr.themes.Base:
  """Gradio's own parts in the colours of ours, and in fonts that every machine has."""
  plain = gr.themes.Default(font=FONT, font_mono=FIXED, primary_hue="blue", neutral_hue="gray")
  names = dict(
    body_background_fill="page",
    body_text_color="ink",
    body_text_color_subdued="soft",
    block_background_fill="page",
    block_label_text_color="soft",
    block_title_text_color="ink",
    border_color_primary="line",
    block_border_color="line",
    input_background_fill="page",
  )
  values = {name: f"var(--{ours})" for name, ours in names.items()}
  values["button_primary_background_fill"] = "*primary_600"
  return plain.set(**values, **{f"{name}_dark": value for name, value in values.items()})


def style() -> str:
  colors = "".join(f".m{number} {{ --c: {color}; }}\n" for number, color in enumerate(MEDIA_COLORS))
  used = "".join(
    f'.gradio-container:not(:has(#mode input[value="{mode}"]:checked)) #{part} {{ display: none; }}\n'
    for mode, part in ((DRAWN, "drawing"), (SEARCHED, "searching"))
  )
  return colors + used + (HERE / "style.css").read_text()
