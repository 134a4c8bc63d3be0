"""A web page that makes videos with a checkpoint, on this machine: python -m cinema_jax.serve

Only this machine sees the page, unless --host says otherwise. Needs Gradio: pip install -e ".[web]"
"""

import importlib.util
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from absl import flags

from cinema_jax import command, sampling_flags
from cinema_jax.errors import InputError

flags.adopt_module_key_flags(sampling_flags)
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address that is listened on; 0.0.0.0: all of this machine's.")
PORT = flags.DEFINE_integer("port", 7860, "The port.", lower_bound=1, upper_bound=65535)
MAX_UPLOAD = flags.DEFINE_integer("max_upload", 20, "Largest picture, in megabytes.", lower_bound=1)
MAX_WAITING = flags.DEFINE_integer("max_waiting", 20, "Visitors who may wait for their video.", lower_bound=1)


def main() -> None:
    """Load the checkpoint, compile, and serve until Ctrl-C."""
    asked = sampling_flags.asked()
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the web page needs Gradio, which is not installed: pip install -e ".[web]"')
    # Asked to end, it takes its files with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="cinema_jax_") as folder:
            # Read when Gradio is imported: what visitors send and get lies in here, and goes with it.
            os.environ |= {"GRADIO_TEMP_DIR": f"{folder}/visitors", "GRADIO_ANALYTICS_ENABLED": "False"}
            _serve(Path(folder), asked)
    except KeyboardInterrupt:
        os._exit(0)
    except SystemExit as end:
        # Nothing else ends a thread that compiles: the interpreter would crash on its way out.
        os._exit(end.code)


def _serve(folder: Path, asked: dict[str, Any]) -> None:
    from cinema_jax import parts
    from cinema_jax.data.critters.examples import write_examples
    from cinema_jax.sampling import sampler_of
    from cinema_jax.training.run import Run
    from cinema_jax.web import page
    from cinema_jax.web.studio import Studio

    checkpoint = sampling_flags.CHECKPOINT.value
    run = Run.load(parts.checkpoint_folder(checkpoint), sampling_flags.INIT.value)
    sampling_flags.keep_compiled()
    studio = Studio(run, sampler_of(run), checkpoint, asked)
    examples = write_examples(folder, studio.most)
    blocks = page.build(studio, folder, examples)
    try:
        _, address, _ = blocks.queue(max_size=MAX_WAITING.value).launch(
            server_name=HOST.value,
            server_port=PORT.value,
            max_file_size=f"{MAX_UPLOAD.value}mb",
            share=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=page.THEME,
            css=page.CSS,
            head=page.HEAD,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise InputError(f"--port={PORT.value} cannot be used: {error}") from None
    # The first visitor then waits less.
    threading.Thread(target=studio.warm_up, args=examples[0], daemon=True).start()
    print(f"The page of {checkpoint} is at {address} (Ctrl-C ends it)", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    command.run(main)
