"""Exports on the Hub of Hugging Face, by its own library, which knows who the user is."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchqat.checkpoints.card import is_ours
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.files import CARD


def check_hub(repository: str) -> None:
    """Whether ``repository`` can be pushed to, found out before anything is paid for; nothing is written there.

    Raises:
        UserError: It is no name of one, there is no network, or the user may not write there.
    """
    with needs("hf", "A push to the Hub"):
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub must be org/name, but {first_line(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to-hub {repository} needs the Hub, but HF_HUB_OFFLINE keeps it away.")
    try:
        who = HfApi().whoami()
    except Exception as error:  # no network, no token, a token that has run out
        raise UserError(
            f"--push-to-hub {repository} needs the Hub and someone whom it knows (hf auth login), but {first_line(error)}"
        ) from error
    _check_may_write(repository, who)


def _check_may_write(repository: str, who: dict[str, Any]) -> None:
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            f"--push-to-hub {repository} needs a token that may write, but that of {who['name']} only reads."
        )
    own = [who["name"], *(organisation["name"] for organisation in who.get("orgs", []))]
    owner, has_owner, _ = repository.partition("/")
    if has_owner and owner not in own:
        raise UserError(f"--push-to-hub must name a repository of {' or '.join(own)}, but is {repository}.")


def push(folder: Path, repository: str, say: Callable[[str], None]) -> str:
    """Put the files of ``folder`` into ``repository``, a private one where there is none yet; returns its address.

    A card that someone wrote there stays, and so does whatever else is there.

    Raises:
        UserError: The Hub does not take them.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        is_new = not hub.repo_exists(repository)
        address = str(hub.create_repo(repository, private=True, exist_ok=True))
        kept = [] if is_new or _card_is_ours(hub, repository) else [CARD]
        hub.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=kept or None, commit_message="Export of torchqat"
        )
    except Exception as error:
        raise UserError(f"{folder} could not be pushed to {repository}, but is here: {first_line(error)}") from error
    if kept:
        say(f"The card of {repository} stays as it is, since it was not written by torchqat.")
    say(f"{folder} is at {address}{', which is private until you open it' if is_new else ''}.")
    return address


def _card_is_ours(hub: Any, repository: str) -> bool:
    if not hub.file_exists(repository, CARD):
        return True
    with tempfile.TemporaryDirectory() as scratch:
        return is_ours(Path(hub.hf_hub_download(repository, CARD, local_dir=scratch)))
