"""Ray and ports: whether its programs run, whether processes of this machine reach one another, who answers where."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

from recipes.doctor.check import Check, Subject, ok, problem, warning

_KNOCK_SECONDS = 5.0
_PROGRAM_SECONDS = 20.0
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def network_checks(subject: Subject) -> Iterator[Check]:
    """Ray's programs, ports, proxies, the cluster's address and the endpoint."""
    found = util.find_spec("ray")
    if found is None or not found.origin:
        yield problem("Ray", "not installed", "run uv sync")
    else:
        yield ray_check(Path(found.origin).parent)
    address = subject.config.cluster.address if subject.config else ""
    own = own_address()
    yield port_check("127.0.0.1")
    if own != "127.0.0.1":
        yield port_check(own)
    yield from proxy_checks(dict(os.environ), own)
    if address:
        yield address_check(address)
    elif os.environ.get("RAY_ADDRESS"):
        yield warning(
            "RAY_ADDRESS",
            f"{os.environ['RAY_ADDRESS']}; a run starts its own Ray all the same",
            "set cluster.address to join that cluster",
        )
    endpoint = subject.config.eval.endpoint.url if subject.config else ""
    if endpoint:
        yield endpoint_check(endpoint)


def ray_check(package: Path) -> Check:
    """Whether Ray's two programs can be run here; a whole start takes 5 to 25 s and is not tried.

    Args:
        package: folder of the installed ``ray``.
    """
    for program in ("gcs/gcs_server", "raylet/raylet"):
        file = package / "core" / "src" / "ray" / program
        try:
            subprocess.run([file, "--version"], capture_output=True, timeout=_PROGRAM_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).split("'")[-1].strip()
            return problem(
                "Ray",
                f"{file.name} does not run here: {reason}",
                "uv sync --reinstall-package ray; a folder mounted noexec must not hold .venv",
            )
    return ok("Ray", "its programs run (a whole start is not tried)")


def own_address() -> str:
    """Address under which other machines reach this one, as Ray finds it; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 80))  # of UDP: only the route is looked up
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def port_check(host: str) -> Check:
    """Whether a port can be opened at an address of this machine and reached from it."""
    name = f"ports at {host}"
    try:
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection((host, port), timeout=_KNOCK_SECONDS).close()
    except OSError as error:
        return problem(
            name,
            f"a port opened there cannot be reached: {error.strerror or error}",
            "let the firewall or VPN pass what this machine sends to itself",
        )
    return ok(name, "can be opened and reached")


def proxy_checks(environment: Mapping[str, str], own: str) -> Iterator[Check]:
    """Whether a proxy would catch what the processes of a run say to one another.

    Args:
        environment: the environment variables of the process.
        own: this machine's address.
    """
    used = [name for name in _PROXIES if environment.get(name)]
    if not used:
        return
    spared = {
        entry.strip()
        for name in ("no_proxy", "NO_PROXY")
        for entry in environment.get(name, "").split(",")
        if entry.strip()
    }
    missing = [host for host in ("localhost", "127.0.0.1", own) if host not in spared and "*" not in spared]
    if missing:
        wanted = ",".join(dict.fromkeys(("localhost", "127.0.0.1", own)))
        yield warning(
            "proxy",
            f"{', '.join(used)} set, and no_proxy lacks {', '.join(dict.fromkeys(missing))}: Ray may talk to itself "
            "through the proxy, and hang",
            f"export no_proxy={wanted} NO_PROXY={wanted}",
        )
    else:
        yield ok("proxy", f"{', '.join(used)} set, this machine's own addresses are left out")


def address_check(address: str) -> Check:
    """Whether somebody listens at ``cluster.address``."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return ok("cluster.address", f"{address}: Ray looks for a cluster on this machine")
    return _knock("cluster.address", address, host, port, "start it with ray start --head, or leave it empty")


def endpoint_check(url: str) -> Check:
    """Whether somebody listens at ``eval.endpoint.url``."""
    parts = urlsplit(url)
    advice = "start the server, or fix eval.endpoint.url"
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        return problem("eval.endpoint", f"{url} has no usable port: {error}", advice)
    return _knock("eval.endpoint", url, parts.hostname or "", str(port), advice)


def _knock(name: str, address: str, host: str, port: str, advice: str) -> Check:
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return problem(name, f"nobody answers at {address}: {reason}", advice)
    return ok(name, f"{address} answers")
