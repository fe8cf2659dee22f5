"""A value on its way into the store: a temporary file that nobody sees before the put commits."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from iris_kv.errors import UnavailableError
from iris_kv.store import names
from iris_kv.store.checks import check_size
from iris_kv.store.folders import create_file, write_all

if TYPE_CHECKING:
    from iris_kv.model import Limits, Scope
    from iris_kv.store.cache import OpenCache


class Upload:
    """One temporary file in the scope's own folder, so that its rename never crosses file systems.

    A task that is cancelled may discard an upload while a thread still writes to it: the mutex
    keeps that thread from a descriptor whose number is already another file's.
    """

    def __init__(self, cache: OpenCache, scope: Scope, limits: Limits) -> None:
        """Prepare; the file is created by the first write."""
        self._cache = cache  # held, so that the folder stays open
        self.scope: Final = scope
        self.folder: Final = cache.folders.scope(scope)
        self.name: Final = names.TEMP_PREFIX + secrets.token_hex(8)
        self.size = 0
        self._is_renamed = False
        self._limits = limits
        self._sha = hashlib.sha256()
        self._mutex = threading.Lock()
        self._handle: int | None = None
        self._ended = False
        self._finished = False

    def write(self, chunk: bytes) -> None:
        """Append a chunk; one that did not fit on the disk can be appended again.

        Raises:
            TooLargeError: The value would be over the limit of its scope.
            FileNotFoundError: The scope's folder was deleted.
        """
        with self._mutex:
            handle = self._open()
            check_size(self.size + len(chunk), self._limits)
            try:
                write_all(handle, chunk)
            except OSError:
                # What there is of it may have taken the last room on the disk.
                os.ftruncate(handle, self.size)
                os.lseek(handle, self.size, os.SEEK_SET)
                raise
            self._sha.update(chunk)
            self.size += len(chunk)

    def finish(self, *, durable: bool) -> bytes:
        """Bring the file to disk, end the upload and return the value's SHA-256; once more it only does the last."""
        with self._mutex:
            if self._finished:
                return self._sha.digest()
            handle = self._open()
            if durable:
                os.fsync(handle)
            self._close()
            self._finished = True
            return self._sha.digest()

    def rename(self, folder: int, file: str) -> None:
        """Give the ended upload its final name; the put looks after the file from then on."""
        os.rename(self.name, file, src_dir_fd=self.folder, dst_dir_fd=folder)
        self._is_renamed = True

    def discard(self) -> None:
        """Remove the temporary file if it is still there."""
        with self._mutex:
            self._close()
            if not self._is_renamed:
                with suppress(OSError):
                    os.unlink(self.name, dir_fd=self.folder)

    def _open(self) -> int:
        if self._ended:
            raise UnavailableError(
                "the upload was ended already", "it was cancelled, and nothing was written", "put the value again"
            )
        if self._handle is None:
            self._handle = create_file(self.folder, self.name)
        return self._handle

    def _close(self) -> None:
        self._ended = True
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
