"""The two hosts of a port by name, and which one an adapter's folder says is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftport.errors import HostMismatch, InputError
from peftport.escape import visible
from peftport.formats import Recorded
from peftport.hosts.load import inspect_host, locate_host
from peftport.hosts.packaged import is_packaged
from peftport.hosts.spec import HostSpec
from peftport.refs import Ref

_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Named:
    """A host that was found and looked at, not loaded.

    Attributes:
        name: how it was asked for.
        folder: where it lies on this machine.
        revision: commit of a Hub id, else None.
        spec: what it is.
    """

    name: str
    folder: Path
    revision: str | None
    spec: HostSpec

    @property
    def library_name(self) -> str:
        """How ``from_pretrained`` would be told: a Hub id without its revision, else the name."""
        if is_packaged(self.name) or Path(self.name).expanduser().exists():
            return self.name
        return Ref.parse(self.name).id

    @property
    def words(self) -> str:
        """``'minilm-base' (55d3c42cc9aa)``"""
        return f"'{self.name}' ({self.spec.fingerprint[:12]})"


def find(name: str) -> Named:
    """Raises InputError: no host of this name, or one that cannot be read."""
    if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise InputError(f"'{visible(name)}' is no name of a host; give a folder or a Hub id")
    found = locate_host(name)
    return Named(name, found.path, found.revision, inspect_host(str(found.path)))


def find_source(given: str | None, recorded: Recorded, adapter: str) -> Named:
    """The host an adapter was trained on.

    Args:
        given: ``--source``; None: the adapter must say it.
        recorded: what its folder says.
        adapter: its name, for messages.

    Raises:
        InputError: nothing says which host it is, or that host cannot be found.
        HostMismatch: the adapter's fingerprint is that of another host.
    """
    if given is None and not recorded.host:
        raise InputError(
            f"adapter '{adapter}' does not say which host it was trained on; name it with --source"
        )
    if given is not None:
        found = find(given)
    else:
        try:
            found = find(recorded.host)
        except InputError as error:
            raise InputError(
                f"adapter '{adapter}' says that its host is '{visible(recorded.host)}', which "
                f"cannot be used ({error}); name its host with --source"
            ) from None
    if recorded.fingerprint and recorded.fingerprint != found.spec.fingerprint:
        own = f"'{recorded.host or 'unnamed'}' ({recorded.fingerprint[:12]})"
        where = "--source" if given is not None else "what lies there now"
        raise HostMismatch(
            f"adapter '{adapter}' belongs to host {own}, {where} is {found.words}; "
            "name the host that it was trained on with --source"
        )
    return found
