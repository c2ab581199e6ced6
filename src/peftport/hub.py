"""Folders of adapters to the Hugging Face Hub; private unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftport.errors import InputError, RunError
from peftport.refs import Ref


def check_push(repo: str) -> None:
    """Raises InputError unless this is a Hub id without a revision; asks nobody."""
    ref = Ref.parse(f"hf://{repo.removeprefix('hf://')}")
    if ref.revision:
        raise InputError(f"--push-to-hub takes an id without a revision, got '{repo}'")


def push(folder: Path, repo: str, *, public: bool = False, only: Sequence[str] = ("**",)) -> str:
    """Upload a folder as a model repository, made where there is none, in one commit.

    Args:
        folder: what is uploaded.
        repo: ``org/name``.
        public: may everybody read it. A repository that is public already is refused without.
        only: patterns of the files that go there.

    Returns:
        The address of the commit.

    Raises:
        InputError: no right to write there, no such id, or a public repository.
        RunError: the Hub cannot be reached.
    """
    check_push(repo)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # what its HTTP library raises without an answer, whichever library it is
    no_answer: type[Exception] = HfHubHTTPError.__bases__[0]

    api = HfApi(library_name="peftport")
    name = repo.removeprefix("hf://")
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise InputError(
                f"'{name}' exists and everybody can read it; give --public, or another id"
            )
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(only),
            commit_message="Upload adapters with peftport",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        first = (str(error.server_message or error).strip().splitlines() or [""])[0]
        remedy = "log in with 'hf auth login'" if status in (401, 403) else "check the id"
        kind = InputError if 400 <= status < 500 else RunError
        raise kind(f"the Hub refuses '{name}' ({status}: {first}); {remedy}") from None
    except OfflineModeIsEnabled:
        raise InputError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to '{name}'; unset it"
        ) from None
    except (OSError, ValueError, no_answer) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"cannot push to '{name}': {first}; the folder is in {folder}") from None
    return str(done.commit_url)
