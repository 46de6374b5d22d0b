"""Servers for the host tests: one for each ComfyUI found and each set of flags, started once a session.

With REQUIRE_HOST=1 a ComfyUI that is missing or cannot run fails the tests that it would skip otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .hosts import Host, find_hosts
from .server import Server

HOSTS, MISSING = find_hosts()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "comfyui" in metafunc.fixturenames:
        # A stand-in for each host that cannot run says so in the report.
        found = [pytest.param(host, id=host.version) for host in HOSTS]
        for reason in MISSING:
            marks = () if os.environ.get("REQUIRE_HOST") == "1" else pytest.mark.skip(reason=reason)
            found.append(pytest.param(reason, marks=marks, id="missing"))
        metafunc.parametrize("comfyui", found, indirect=True, scope="session")


@pytest.fixture(scope="session")
def comfyui(request: pytest.FixtureRequest) -> Host:
    """A ComfyUI checkout; each test runs with every one that was found."""
    if not isinstance(request.param, Host):
        pytest.fail(request.param, pytrace=False)
    return request.param


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server with the same arguments once, and stop all of them at the end."""
    servers: dict[tuple, Server] = {}

    def start(
        host: Host,
        flags: tuple[str, ...] = (),
        packs: dict[str, Path] | None = None,
        models: dict[str, Path] | None = None,
        user: str = "",
    ) -> Server:
        # A `user` shares its server with no other.
        key = (user, host, flags, tuple(sorted((packs or {}).items())), tuple(sorted((models or {}).items())))
        if key not in servers or servers[key].process.poll() is not None:
            servers[key] = Server(host, tmp_path_factory.mktemp("comfyui"), flags, packs, models)
        return servers[key]

    yield start
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def host(comfyui: Host, start_server: Callable[..., Server]) -> Server:
    """A server as a user starts it: the host chooses every dtype."""
    return start_server(comfyui)


@pytest.fixture(scope="session")
def host_fp32(comfyui: Host, start_server: Callable[..., Server]) -> Server:
    """A server that computes everything in fp32, for comparisons with the core."""
    return start_server(comfyui, ("--force-fp32", "--fp32-unet", "--fp32-vae", "--fp32-text-enc"))
