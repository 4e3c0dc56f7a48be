"""The folder of an export: what is replaced must be an export too, as torchqat wrote it.

``.torchqat`` lists what was written, so that nothing of the user's is taken for it: not the float model, whose files have
the same names, nor what was put beside an export or changed in it. The card has a seal of its own (card.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchqat.checkpoints.card import keep_card
from torchqat.errors import UserError
from torchqat.files import CARD, SEAL, pending_folder

_FIRST = "torchqat wrote these files, of so many bytes, and replaces this folder while it has them and no others.\n"


@contextmanager
def exported_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to fill; takes its place, sealed, when the block ends well, with the user's card.

    Raises:
        UserError: ``output`` holds what no export wrote, or it could not be written.
    """
    check_replaceable(output)
    with pending_folder(output) as folder:
        yield folder
        keep_card(output, folder)
        (folder / SEAL).write_text(_FIRST + _listed(folder), encoding="utf-8")


def check_replaceable(output: Path) -> None:
    """Whether an export may take the place of ``output``, before anything is paid for.

    Raises:
        UserError: It is no folder, or holds something that an export did not write there, or that was changed since.
    """
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise UserError(
                f"output must be a folder, new, empty or of an export, but {output} is a file or leads nowhere."
            )
        return
    if output.samefile(Path.cwd()):
        raise UserError(
            f"output must not be the folder that the command runs in, because it is replaced, but {output} is."
        )
    seal = output / SEAL
    text = seal.read_text(encoding="utf-8", errors="replace") if seal.is_file() else ""
    sealed = set(text.removeprefix(_FIRST).splitlines())
    for line in _listed(output).splitlines():
        if line not in sealed:
            raise UserError(
                "output must be a new or an empty folder, or an export as torchqat wrote it, which is replaced, but "
                f"{output} holds {line.partition(' ')[2]}, which is not of one."
            )


def _listed(folder: Path) -> str:
    """Size and name of each file in ``folder``, a line each, and of folders that are empty or links the name."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (CARD, SEAL):
            lines.append(f"{path.stat().st_size} {name}\n")
        elif path.is_symlink() or (path.is_dir() and not any(path.iterdir())):
            lines.append(f"- {name}\n")
    return "".join(lines)
