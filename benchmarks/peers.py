"""What else moves a file: curl over TLS from nginx, the wire's limit for a program that checks and keeps nothing; the
messages of Flower and of NVIDIA FLARE, each in an environment of its own (`make peers`).
"""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from common.trust.identity import Identity
from common.trust.pki import CertificateAuthority, make_csr, new_key

LARGEST_MIB: Final = 256
_ROUNDS: Final = 3
_BLOCK: Final = 1024 * 1024
_WAIT_S: Final = 30.0
_PATIENCE_S: Final = 900.0
_FLOWER_STARTS_S: Final = 5.0
_ENVIRONMENTS: Final = Path(__file__).parents[1] / ".work"

_NGINX_CONFIG: Final = """
daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/error.log;
events {{}}
http {{
  access_log off; sendfile on; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; root {work}/files;
    ssl_certificate {work}/server.pem; ssl_certificate_key {work}/server.key;
  }}
}}
"""


def measure(work: Path, *, size_mib: int) -> dict[str, Any]:
    """Every peer that is here, at `size_mib`; None for one that is not."""
    return {
        "size_mib": size_mib,
        "curl_from_nginx": curl(work / "peers", size_mib=size_mib),
        "flower": flower(work / "flower", size_mib=size_mib),
        "nvflare": nvflare(work / "nvflare", size_mib=size_mib),
    }


def flower(work: Path, *, size_mib: int) -> dict[str, Any] | None:
    """An ArrayRecord of float32 down and up again, without TLS; beside it what a message without one takes."""
    programs = _ENVIRONMENTS / "flower" / "bin"
    if not (programs / "flwr").exists():
        return None
    from tests.federation import free_ports

    (work / "home").mkdir(parents=True)
    link, node = free_ports(2)
    settings = {
        "FLWR_HOME": str(work / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    (work / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    environment = {**os.environ, **settings}
    result = work / "result.json"
    with (work / "logging").open("w") as logging, ExitStack() as stack:
        for command in (
            ["flower-superlink", "--insecure", "--port", str(link)],
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", str(node)],
        ):
            started = subprocess.Popen(
                [str(programs / command[0]), *command[1:]], env=environment, stdout=logging, stderr=logging
            )
            stack.callback(started.terminate)
            time.sleep(_FLOWER_STARTS_S)
        app, options = Path(__file__).parent / "peer_flower", f"mib={size_mib} result='{result}'"
        run = [str(programs / "flwr"), "run", str(app), "bench", "--stream", "--run-config", options]
        subprocess.run(run, env=environment, stdout=logging, stderr=logging, check=True, timeout=_PATIENCE_S)
    seconds = json.loads(result.read_text())
    shutil.rmtree(work, ignore_errors=True)
    moved = size_mib * _BLOCK / 1e6
    return {
        **{f"{way}_mb_per_s": round(moved / seconds[way], 1) for way in ("up", "down")},
        "an_empty_message_s": round(seconds["none"], 2),
    }


def nvflare(work: Path, *, size_mib: int) -> dict[str, Any] | None:
    """A blob up and down again, over gRPC and mutual TLS."""
    python = _ENVIRONMENTS / "nvflare" / "bin" / "python"
    if not python.exists():
        return None
    from tests.federation import free_ports

    work.mkdir(parents=True)
    _certify(work)
    port, script = free_ports(1)[0], Path(__file__).parent / "peer_nvflare.py"
    line = [str(python), str(script), "", str(work), str(port), str(size_mib)]
    with (work / "logging").open("w") as logging:
        server = subprocess.Popen([*line[:2], "server", *line[3:]], stdout=logging, stderr=logging)
        try:
            until = time.monotonic() + _WAIT_S
            while not (work / "server.ready").exists() and time.monotonic() < until:
                time.sleep(0.1)
            done = subprocess.run([*line[:2], "client", *line[3:]], stdout=subprocess.PIPE, stderr=logging, check=True,
                                  text=True, timeout=_PATIENCE_S)  # fmt: skip
        finally:
            server.terminate()
    seconds, moved = json.loads(done.stdout.splitlines()[-1]), size_mib * _BLOCK / 1e6
    shutil.rmtree(work, ignore_errors=True)
    return {f"{way}_mb_per_s": round(moved / seconds[f"{way}_s"], 1) for way in ("up", "down")}


def curl(work: Path, *, size_mib: int) -> dict[str, Any] | None:
    """Fetch a file from nginx over TLS 1.3 with curl and put it on disk."""
    program, server = shutil.which("curl"), shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or server is None:
        return None
    (work / "files").mkdir(parents=True)
    file = work / "files" / "file"
    block = os.urandom(_BLOCK)
    with file.open("wb") as writing:
        for _ in range(size_mib):
            writing.write(block)
    with _nginx(server, work) as port:
        command = [program, "--silent", "--fail", "--cacert", str(work / "authority.pem"), "--output",
                   str(work / "fetched"), f"https://127.0.0.1:{port}/file"]  # fmt: skip
        rates = [_rate_of(command, work / "fetched") for _ in range(_ROUNDS)]
    shutil.rmtree(work)
    return {"mb_per_s": statistics.median(rates), "all_mb_per_s": rates}


def _rate_of(command: list[str], fetched: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    with fetched.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    size = fetched.stat().st_size
    fetched.unlink()
    return round(size / seconds / 1e6, 1)


@contextmanager
def _nginx(program: str, work: Path) -> Iterator[int]:
    from tests.federation import free_ports

    port = free_ports(1)[0]
    _certify(work)
    config = work / "nginx.conf"
    config.write_text(_NGINX_CONFIG.format(work=work, port=port))
    with subprocess.Popen([program, "-c", str(config), "-e", str(work / "error.log")]) as process:
        until = time.monotonic() + _WAIT_S
        while not (work / "nginx.pid").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        try:
            yield port
        finally:
            process.terminate()


def _certify(work: Path) -> None:
    """A certificate of the same kind as a coordinator's."""
    now, key = datetime.now(UTC), new_key()
    authority = CertificateAuthority.create("bench.example", now=now)
    certificate = authority.issue(
        make_csr(key), identity=Identity.coordinator("bench.example"), not_before=now,
        not_after=now + timedelta(hours=3), server_names=("127.0.0.1",),
    )  # fmt: skip
    (work / "server.pem").write_bytes(certificate)
    (work / "server.key").write_bytes(key)
    client = new_key()
    owner = Identity.owner("bench.example", party="site-1")
    (work / "client.pem").write_bytes(
        authority.issue(make_csr(client), identity=owner, not_before=now, not_after=now + timedelta(hours=3))
    )
    (work / "client.key").write_bytes(client)
    (work / "authority.pem").write_bytes(authority.certificate_pem)
