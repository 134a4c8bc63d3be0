"""A web page that makes videos with a checkpoint, on this machine: python -m cinema_jax.serve

Only this machine sees the page, unless --host says otherwise. Needs Gradio: pip install -e ".[web]"
"""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from absl import flags

from cinema_jax.commands import command
from cinema_jax.errors import InputError
from cinema_jax.inputs import files
from cinema_jax.sampling import options
from cinema_jax.web import gate

flags.adopt_module_key_flags(options)
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address that is listened on; 0.0.0.0: all of this machine's.")
PORT = flags.DEFINE_integer("port", 7860, "The port.", lower_bound=1, upper_bound=65535)
MAX_UPLOAD = flags.DEFINE_integer("max_upload", 20, "Largest picture, in megabytes.", lower_bound=1)
MAX_WAITING = flags.DEFINE_integer("max_waiting", 20, "Visitors who may wait for their video.", lower_bound=1)
MAX_ORDERS = flags.DEFINE_integer("max_orders", 2, "Videos that one visitor may have ordered at a time.", lower_bound=1)
MAX_UPLOADS = flags.DEFINE_integer(
    "max_uploads",
    1000,
    "All pictures of all visitors together, in megabytes; one visitor may send a tenth of it in an hour.",
    lower_bound=1,
)
ALLOWED = flags.DEFINE_multi_string(
    "allowed_host",
    [],
    "A name under which visitors reach the page through a tunnel or proxy, for example demo.example.org or "
    "*.trycloudflare.com. Give the flag once for each. Without it: this machine's own name and addresses.",
)


def main() -> None:
    """Load the checkpoint, compile, and serve until Ctrl-C."""
    asked = options.asked()
    gate.check_names(ALLOWED.value)
    if not HOST.value.strip():
        raise InputError("--host is empty; 127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses")
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the web page needs Gradio, which is not installed: pip install -e ".[web]"')
    # Asked to end, it takes its files with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        # What a killed server has left goes here too.
        with files.scratch(files.own_folder("cinema_jax_serve") / "page") as folder:
            # Read when Gradio is imported: what visitors send and get lies in here, and goes with it.
            os.environ |= {"GRADIO_TEMP_DIR": f"{folder}/visitors", "GRADIO_ANALYTICS_ENABLED": "False"}
            _serve(folder, asked)
    except KeyboardInterrupt:
        os._exit(0)
    except SystemExit as end:
        # Nothing else ends a thread that compiles: the interpreter would crash on its way out.
        os._exit(end.code)


def _serve(folder: Path, asked: dict[str, Any]) -> None:
    from cinema_jax.data.critters.examples import write_examples
    from cinema_jax.web import page
    from cinema_jax.web.studio import Studio

    pipeline = options.pipeline()
    settings = pipeline.checked([], **asked)
    options.keep_compiled()
    pipeline.load(options.tell, **options.placement(settings))
    studio = Studio(pipeline, asked)
    visitors = Path(os.environ["GRADIO_TEMP_DIR"])
    examples = write_examples(folder, studio.most)
    blocks = page.build(studio, folder, examples)
    try:
        _, address, _ = blocks.queue(max_size=MAX_WAITING.value).launch(
            server_name=HOST.value,
            server_port=PORT.value,
            app_kwargs={"middleware": [page.gate(blocks, visitors, _limits())]},
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
    print(f"The page of {pipeline.checkpoint} is at {address} (Ctrl-C ends it)", flush=True)
    threading.Event().wait()


def _limits() -> dict[str, Any]:
    """Of `gate.Gate`."""
    most = MAX_UPLOADS.value * 1_000_000
    each = max(most // 10, MAX_UPLOAD.value * 1_000_000)
    return {
        "host": HOST.value,
        "names": tuple(ALLOWED.value),
        "most_each": each,
        "most": most,
        "orders": MAX_ORDERS.value,
    }


if __name__ == "__main__":
    command.run(main)
