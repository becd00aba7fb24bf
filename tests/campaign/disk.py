"""A small disk for the tables, so that it can be full: a tmpfs in a mount namespace of our own.

Reads: whether we may mount. Writes: one tmpfs, seen by this process and its children only; it ends with them.
Guarantee: without root, or where mounting is forbidden, nothing is mounted and the fault says that it was skipped.
If it is wrong: the disk is never full, or never free again.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLONE_NEWNS = 0x20000
ROOMY = "2g"  # what is not used takes no memory
SKIPPED = "skipped: a disk that can be full needs root and a mount namespace"


def own_mounts() -> bool:
    """Leave the machine's mount namespace, before any thread begins: whether mounts are our own now."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
        return False
    return mount("--make-rprivate", "/")


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs. It is full when its size is what is used."""

    folder: Path

    def mount(self) -> bool:
        self.folder.mkdir(exist_ok=True)
        return mount("-t", "tmpfs", "-o", f"size={ROOMY},mode=0711", "outbox-campaign", str(self.folder))

    def fill(self) -> None:
        found = os.statvfs(self.folder)
        self._resize(str((found.f_blocks - found.f_bfree) * found.f_frsize + found.f_frsize))

    def free(self) -> None:
        self._resize(ROOMY)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)
