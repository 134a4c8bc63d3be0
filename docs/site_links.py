"""Hook of mkdocs: documents outside of docs/ become pages, and links between files of the checkout links between pages.

On GitHub the documents link to each other and to files by relative paths. The site has the pages of docs/ and those of
`PAGES`; a link to any other file of the checkout is shown as its path.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Page of the site: file of the checkout.
PAGES = {
    "project/readme.md": "README.md",
    "project/changes.md": "CHANGELOG.md",
    "project/benchmarks.md": "benchmarks/README.md",
    "project/hosts.md": "benchmarks/hosts.md",
    "project/demo_card.md": "cinema_jax/assets/demo/README.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files, config):
    """Add the documents outside of docs/."""
    for page, file in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point every relative link to a page of the site."""
    here = page.file.src_uri
    file = PAGES.get(here, f"docs/{here}")

    def linked(link: re.Match) -> str:
        image, text, target, anchor = link.groups()
        if not target or ":" in target:
            return link[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        if not (ROOT / wanted).exists():
            # mkdocs then reports it.
            return link[0]
        to = next((uri for uri, source in PAGES.items() if source == wanted), None)
        if to is None and wanted.startswith("docs/"):
            to = wanted.removeprefix("docs/")
        if to is None:
            return f"{text} (`{wanted}`)" if wanted not in text else f"`{wanted}`"
        return f"{image}[{text}]({posixpath.relpath(to, posixpath.dirname(here) or '.')}{anchor or ''})"

    # Not in blocks of code.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(linked, part) for part in parts)
