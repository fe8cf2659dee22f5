"""On what kind of file system a folder lies, as far as SQLite's locks and shared memory depend on it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SHARED: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gfs2", "ocfs2", "beegfs"}
    | {"9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "grpcfuse", "osxfs", "fakeowner", "drvfs"}
    | {"fuse.sshfs", "fuse.grpcfuse", "fuse.osxfs", "fuse.glusterfs", "fuse.vmhgfs-fuse", "fuse.s3fs", "fuse.rclone"}
)
"""File systems that another machine or kernel may use at the same time; all others have their locks here alone."""


def file_system(folder: int) -> str:
    """Return the type of the file system of an open folder, such as `ext4`; empty where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        device = os.fstat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split(" ", 3)[2] == wanted:
                return source.split(" ", 1)[0]
    return ""


def is_shared(folder: int) -> bool:
    """Tell whether another machine or kernel may use the file system of an open folder at the same time."""
    return file_system(folder) in SHARED
