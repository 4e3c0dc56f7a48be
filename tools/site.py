"""Hooks of mkdocs for the site (mkdocs.yml): what pages link to outside of docs/, and the Python API by mkdocstrings.

Pages are read in the repository as well, so their links are those of its files: ``../benchmarks/results/ptq-cpu.md``. Each
file so linked to, and what it links to itself, becomes a file of the site under ``repository/``. ``docs/api.md`` is text in
the repository; on the site mkdocstrings writes the same names from the same docstrings, with types that are links.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files, config):
    waiting = [f"docs/{page.src_uri}" for page in files.documentation_pages()]
    for source in waiting:  # which grows
        if not source.endswith(".md"):
            continue
        for target in sorted(_linked((ROOT / source).read_text(encoding="utf-8"), source)):
            uri = f"repository/{target}"
            if not target.startswith("docs/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
                waiting.append(target)
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    if uri == "api.md":
        return _directives(markdown)
    if uri.startswith("repository/"):
        return markdown

    def on_site(found):
        target = _target(found[1], f"docs/{uri}")
        if target.startswith("docs/"):
            return found[0]
        return posixpath.relpath(f"repository/{target}", posixpath.dirname(uri) or ".") + (found[2] or "")

    return _LINK.sub(on_site, markdown)


def _linked(markdown: str, source: str) -> set[str]:
    """Files of the repository that one of its files links to."""
    return {_target(link[1], source) for link in _LINK.finditer(markdown)}


def _target(link: str, source: str) -> str:
    """Where a link leads, from the root of the repository.

    Raises:
        PluginError: Out of docs/, and there is no such file.
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not target.startswith("docs/") and (target.startswith("..") or not (ROOT / target).is_file()):
        raise PluginError(f"{source} links to {link}, where the repository has no file.")
    return target


def _directives(markdown: str) -> str:
    """The page with each entry that is Python given to mkdocstrings, which cannot read the compiled ones."""
    face = (ROOT / "python" / "torchqat" / "__init__.py").read_text(encoding="utf-8")
    native = re.search(r"(?m)^from torchqat\._library import (.+)$", face)[1].split(", ")
    parts = re.split(r"(?m)^(?=##)", markdown)
    for i, part in enumerate(parts):
        entry = re.match(r"### `(torchqat\.(.+))`\n", part)
        if entry and entry[2] not in native:
            parts[i] = f"::: {entry[1]}\n\n"
    return "".join(parts)
