"""Readiness: tell the platform that this process takes work, and that it soon will not.

Reads: nothing. Writes: a file that exists while it is ready, messages of sd_notify, a byte for the parent.
Guarantee: nothing says ready before it is announced, nor after it was withdrawn; a file that was left is removed first.
If it dies: the file stays until the next start; systemd sees the process end.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from outbox_worker import telemetry
from outbox_worker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class Readiness:
    def __init__(
        self, *, file: Path | None = None, notify_socket: str | None = None, parent: int | None = None
    ) -> None:
        self.file = file
        self.notify_socket = notify_socket
        self.parent = parent  # a descriptor
        self.announced = False
        self.remove()
        if file is not None and not os.access(file.parent, os.W_OK):
            raise unwritable(file, "its folder is missing or may not be written")

    def announce(self) -> None:
        if self.announced:
            return
        self.announced = True
        if self.file is not None:
            try:
                self.file.touch()
            except OSError as error:
                raise unwritable(self.file, str(error.strerror)) from None
        self.notify("READY=1")
        if self.parent is not None:
            try:
                os.write(self.parent, b".")
            except BrokenPipeError as error:  # it is gone, and this process drains
                telemetry.readiness_untold(str(error))

    def withdraw(self) -> None:
        if self.announced:
            self.announced = False
            self.remove()
            self.notify("STOPPING=1")

    def remove(self) -> None:
        if self.file is not None:
            try:
                self.file.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.file, str(error.strerror)) from None

    def notify(self, message: str) -> None:
        """As sd_notify(3) does; a leading @ stands for the abstract namespace."""
        if self.notify_socket is None:
            return
        address = (
            self.notify_socket.replace("@", "\0", 1) if self.notify_socket[0] == "@" else self.notify_socket
        )
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
                way.setblocking(False)
                way.sendto(message.encode(), address)
        except OSError as error:
            telemetry.readiness_untold(f"{message}: {error.strerror}")


def unwritable(file: Path, why: str) -> ConfigError:
    return ConfigError(
        f"writing OUTBOX_READY_FILE: {file}: {why}. Name a file in a folder that the worker may write."
    )
