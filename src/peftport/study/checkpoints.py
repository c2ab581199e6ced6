"""Where a store keeps how far its long banks are. No torch here."""

from __future__ import annotations

from pathlib import Path

from peftport.atomic import write_bytes
from peftport.study import database as db

#: seconds of work after which a bank's next budget is a checkpoint
CHECKPOINT_S = 60.0
_END = ".checkpoint"


class Checkpoints:
    """A folder of a store with one file for every long bank that is not over.

    Args:
        folder: the store's.
    """

    def __init__(self, folder: Path) -> None:
        self._store, self._folder = folder, folder / db.CHECKPOINTS

    def get(self, bank: str) -> bytes | None:
        """The last checkpoint of a bank, by its id; None where there is none that can be read."""
        try:
            return db.read_plain(self._file(bank))
        except OSError:
            return None

    def keep(self, bank: str, content: bytes) -> None:
        """Put by how far a bank is.

        Raises:
            RunError: the disk is full; InputError: the folder cannot be written.
        """
        with db.one_line_errors(self._store):
            self._folder.mkdir(exist_ok=True)
            write_bytes(self._file(bank), content)

    def drop(self, bank: str) -> None:
        """The bank is over."""
        with db.one_line_errors(self._store):
            self._file(bank).unlink(missing_ok=True)

    def clear(self) -> None:
        """All banks are."""
        with db.one_line_errors(self._store):
            if self._folder.is_dir():
                for path in self._folder.glob("*" + _END):
                    path.unlink()
                if not any(self._folder.iterdir()):
                    self._folder.rmdir()

    def _file(self, bank: str) -> Path:
        return self._folder / (bank + _END)
