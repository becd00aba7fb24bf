"""The receiver that is not the bottleneck: nginx where it is installed, else a small server of our own.

Reads: a folder for nginx's files. Writes: nothing that lasts.
Guarantee: it listens on loopback only, keeps connections alive, logs nothing, and tells how many requests it answered.
If it dies: deliveries fail and the benchmark says that they never came.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.waits import until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]

NGINX = """
{user} worker_processes 1; daemon off; pid {folder}/nginx.pid; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; multi_accept on; }}
http {{
    access_log off; default_type text/plain; keepalive_requests 1000000000; keepalive_timeout 600s;
    client_max_body_size 2m; client_body_buffer_size 64k;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        {tls}
        location = /count {{ stub_status; }}
        location / {{ return 200 "ok"; }}
    }}
}}
"""
TLS = "listen 127.0.0.1:{port} ssl backlog=8192; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;"


@dataclass
class Receiver:
    kind: str
    port: int
    process: subprocess.Popen | None
    tls_port: int = 0
    certificate: Path | None = None
    asked: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def count(self) -> int:
        """Give the requests answered since its start; nginx counts these questions too."""
        text = self.get("/count")
        self.asked += 1
        if self.kind == "nginx":
            return int(text.splitlines()[2].split()[2]) - self.asked
        return int(text)

    def most_at_once(self) -> int:
        """Give the most requests that any endpoint's path had at once, as this receiver saw it; not nginx."""
        return int(self.get("/most"))

    def arrivals(self) -> list[tuple[str, int]]:
        """Give the event ids that arrived since the last call, each with the nanosecond of its first byte."""
        pairs = (line.split() for line in self.get("/arrivals").splitlines())
        return [(event_id, int(moment)) for moment, event_id in pairs]


@contextmanager
def fast_receiver(folder: Path, *, tls: bool = False) -> Iterator[Receiver]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        with own_receiver("answer") as receiver:
            yield receiver
        return
    port, tls_port = free_port(), free_port()
    certificate = make_certificate(folder) if tls else None
    text = NGINX.format(
        user="user root;" if os.geteuid() == 0 else "",
        folder=folder,
        port=port,
        tls=TLS.format(port=tls_port, folder=folder) if tls else "",
    )
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running(command) as process:
        yield ready(Receiver("nginx", port, process, tls_port, certificate))


@contextmanager
def nobody() -> Iterator[Receiver]:
    """For benchmarks that send nothing."""
    yield Receiver("nobody", 8080, None)


@contextmanager
def own_receiver(mode: str) -> Iterator[Receiver]:
    port = free_port()
    with running([sys.executable, "-m", "tests.bench.sink", str(port), mode]) as process:
        yield ready(Receiver("sink", port, process))


def ready(receiver: Receiver) -> Receiver:
    def answers() -> bool:
        if receiver.process.poll() is not None:
            raise RuntimeError(
                f"started the receiver {receiver.kind}: it ended with {receiver.process.returncode}"
            )
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", receiver.port), timeout=1).close()
            return True
        return False

    until(answers, "the receiver", seconds=10)
    return receiver


@contextmanager
def running(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A child process that ends with the block: asked first, then made to."""
    process = subprocess.Popen(command, cwd=CHECKOUT, **{"stdin": subprocess.DEVNULL, **options})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_certificate(folder: Path) -> Path:
    if shutil.which("openssl") is None:
        raise RuntimeError("making a certificate: no openssl command in PATH; install it")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=benchmark"
    words += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
