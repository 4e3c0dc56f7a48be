"""English prose and code that need no network but Debian's and PyPI's, cut by document into training and held-out text.

Prose: the manuals in Debian's packages debian-handbook (training), debian-reference-en (validation) and developers-reference
(held out). Code: modules of the standard library, each in one part by the hash of its name.
"""

import hashlib
import html.parser
import re
import subprocess
import sysconfig
from pathlib import Path

PACKAGES = {
    "train": ("debian-handbook", "usr/share/doc/debian-handbook/html/en-US/*.html"),
    "validation": ("debian-reference-en", "usr/share/debian-reference/*.en.html"),
    "held-out": ("developers-reference", "usr/share/developers-reference/*.html"),
}
PARTS = tuple(PACKAGES)


class _Prose(html.parser.HTMLParser):
    """The text of a page, its menus, scripts and titles apart."""

    PASSED_OVER = ("script", "style", "nav", "head")

    def __init__(self):
        super().__init__()
        self.depth, self.pieces = 0, []

    def handle_starttag(self, tag, attributes):
        self.depth += tag in self.PASSED_OVER
        if tag in ("p", "div", "li", "h1", "h2", "h3", "pre", "td", "dt", "dd"):
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        self.depth -= tag in self.PASSED_OVER

    def handle_data(self, data):
        if not self.depth:
            self.pieces.append(data)


def prose_of(page: Path) -> str:
    reader = _Prose()
    reader.feed(page.read_text(errors="replace"))
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", "".join(reader.pieces))).strip()


def package_files(package: str, pattern: str, cache: Path) -> list[Path]:
    """Those of an installed package, or of one that is downloaded into ``cache``; neither needs to be root."""
    installed = sorted(Path("/").glob(pattern))
    if installed:
        return installed
    folder = cache / package
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    return sorted(folder.glob(pattern))


def part_of(module: Path) -> str:
    """Eight modules of ten train, one validates, one is held out."""
    digit = int(hashlib.sha256(module.name.encode()).hexdigest(), 16) % 10
    return {0: "validation", 1: "held-out"}.get(digit, "train")


def prose(part: str, cache: Path) -> list[str]:
    """Pages of ``part`` that are more than a heading."""
    texts = [prose_of(page) for page in package_files(*PACKAGES[part], cache)]
    return [text for text in texts if len(text) > 2000]


def code(part: str) -> list[str]:
    """Modules of ``part``."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [module.read_text(errors="replace") for module in modules if part_of(module) == part]


def documents(part: str, cache: Path) -> list[str]:
    """Prose and code of ``part``, one document after the other of each."""
    return prose(part, cache) + code(part)


def written(texts: list[str], folder: Path) -> Path:
    """``folder``, with each of ``texts`` as a file, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return folder


def windows(tokenizer, part: str, count: int, length: int, cache: Path, seed: int = 0):
    """``int64 [count, length]``: tokens of ``part``, each after BOS where there is one, drawn without overlap."""
    import torch

    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    inner = length - len(bos)
    found = []
    for text in documents(part, cache):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        found += [bos + tokens[at : at + inner] for at in range(0, len(tokens) - inner + 1, inner)]
    if len(found) < count:
        raise ValueError(f"{part} has {len(found)} windows of {length} tokens, and {count} were asked for")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.tensor([found[index] for index in order.tolist()])
