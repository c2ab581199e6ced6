"""How a host, a dataset or a module is named: ``org/name@revision`` on the Hub, or a path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftport.errors import InputError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_REVISION = re.compile(r"^[\w./-]{1,100}$")


@dataclass(frozen=True)
class Ref:
    """A parsed name.

    Attributes:
        kind: ``hub`` or ``path``.
        id: the Hub id, or the path as given.
        revision: what stood behind ``@``; Hub only.
    """

    kind: Literal["hub", "path"]
    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """``org/name``, ``org/name@rev``, ``hf://org/name`` or a path that exists.

        A path that exists wins over a Hub id of the same spelling; ``./x`` and ``/x`` are always
        paths. Raises InputError when the text is neither.
        """
        plain = text.removeprefix("hf://")
        if plain == text and (_exists(text) or text.startswith((".", "/", "~"))):
            return cls("path", text)
        name, at, revision = plain.partition("@")
        if not _HUB_ID.match(name) or (at and not _REVISION.match(revision)):
            raise InputError(
                f"'{text}' is neither an existing path nor a Hub id; "
                "give a folder or org/name@revision"
            )
        return cls("hub", name, revision or None)

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # e.g. longer than any name can be
        return False


@dataclass(frozen=True)
class Snapshot:
    """A reference resolved to a folder on this machine; ``revision`` is the Hub commit."""

    path: Path
    revision: str | None = None


def resolve(
    ref: Ref, *, allow: tuple[str, ...] = (), kind: Literal["model", "dataset"] = "model"
) -> Snapshot:
    """The local folder of a reference, downloaded through huggingface_hub when it is a Hub id.

    Args:
        ref: what to resolve.
        allow: file patterns to fetch; weights are taken from safetensors only.
        kind: what the Hub id names.

    Raises:
        InputError: the path is no folder, or the Hub has no such id, or cannot be reached.
    """
    if ref.kind == "path":
        try:
            path = Path(ref.id).expanduser()
            found = path.is_dir()
        except (OSError, RuntimeError):  # no such user, a name that is too long
            found = False
        if not found:
            raise InputError(f"no folder at '{ref.id}'; give an existing folder or a Hub id")
        # absolute: "./minilm-base" must not turn into the packaged host's name
        return Snapshot(path.absolute())
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = list(allow) or ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        path = Path(
            snapshot_download(
                ref.id, revision=ref.revision, allow_patterns=patterns, repo_type=kind
            )
        )
    except LocalEntryNotFoundError:
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        raise InputError(
            f"'{ref}' is no folder here, as a Hub id it is not in the local Hub cache and {why}; "
            "give an existing folder, or download it once"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot get '{ref}' from the Hub: {first}; check the id and revision"
        ) from None
    return Snapshot(path, revision=path.name)
