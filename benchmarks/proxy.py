"""Proxying: one edge process with a keyauth policy, against nginx as a plain reverse proxy.

    python -m benchmarks.proxy [--seconds 3] [--rounds 3] [--profile FILE]

Both run on core 0, one worker each, in front of the same upstream (nginx, 1 KiB from memory); load and
upstream have core 1. The runs are interleaved, and the ratio is the median of the rounds' own. Two loads: the
same request again and again, for which the bar is, and 1,000 paths in rotation, so that no two heads of a
connection are alike. The edge is the real process, `python -m edge`, with its own SQLite database.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path

from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.sides import Side, compare

BAR = 0.35
PATHS = 1000
HOST = "shop.unkey.localhost"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in taken]


UPSTREAM, NGINX, HTTP, HTTPS, API, METRICS = free_ports(6)

_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/{name}.body;
  proxy_temp_path {folder}/{name}.proxy; fastcgi_temp_path {folder}/{name}.f; uwsgi_temp_path {folder}/{name}.u;
  scgi_temp_path {folder}/{name}.s; default_type text/plain;
  {body}
}}
"""
_UPSTREAM = "server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{content}'; }} }}"
_PROXY = """
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  }} }}
"""


def nginx(folder: Path, name: str, body: str, core: int) -> subprocess.Popen[bytes]:
    """Start an nginx of one worker on a core."""
    config = folder / f"{name}.conf"
    config.write_text(_NGINX.format(folder=folder, name=name, body=body))
    return subprocess.Popen(pinned(core, ["nginx", "-p", str(folder), "-c", str(config)]))


def seed(port: int) -> str:
    """Make the rows of one deployment with a keyauth policy; return a key that may call it."""
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from django.db import transaction

    from apps.cluster import versions
    from apps.cluster.models import Region
    from apps.deployments.models import Deployment, Instance
    from apps.keys import services as keys
    from apps.projects.models import App, Environment, Project
    from apps.routing.models import FrontlineRoute, Sentinel
    from apps.workspaces.models import shard_of
    from apps.workspaces.services import create_workspace
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    workspace = create_workspace("Bench", "bench", actor=actor)
    region, _ = Region.objects.get_or_create(name="local")
    with workspace_scope(workspace.id), transaction.atomic():
        versions.hold(["instances", "routes", "sentinels", f"keys:{shard_of(workspace.id)}"])
        api = keys.create_api(workspace.id, "bench", actor=actor)
        _, text = keys.create_key(api, actor=actor)
        tenant = {"workspace": workspace}
        project = Project.objects.create(**tenant, name="Shop", slug="shop")
        app = App.objects.create(**tenant, project=project, name="Web", slug="web")
        environment = Environment.objects.create(**tenant, app=app, slug="production", kind="production")
        level = {"project": project, "app": app, "environment": environment}
        deployment = Deployment.objects.create(**tenant, **level, settings={}, regions=[])
        keyauth = {"keyspaces": [api.key_space_id], "locations": [{"bearer": {}}]}
        rows = (
            Instance(
                deployment=deployment,
                region=region,
                name="a",
                address=f"127.0.0.1:{port}",
                status="running",
            ),
            FrontlineRoute(**tenant, **level, fqdn=HOST, deployment=deployment, sticky="live"),
            Sentinel(
                deployment=deployment,
                **tenant,
                environment=environment,
                policies=[{"id": "pol_1", "name": "keys", "enabled": True, "keyauth": keyauth}],
            ),
        )
        for row in rows:
            versions.stamp(row)
            row.save()
    return text


def wait_for(url: str, headers: dict[str, str]) -> bytes:
    """Call a URL until it answers 200; return the body.

    Raises:
        TimeoutError: it did not within 20 seconds.
    """
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=2) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(url)


def start_edge(folder: Path, profile: str) -> subprocess.Popen[bytes]:
    """Start the real edge process on core 0."""
    environment = {
        **os.environ,
        "EDGE_API_PORT": str(API),
        "EDGE_HTTP_PORT": str(HTTP),
        "EDGE_HTTPS_PORT": str(HTTPS),
        "EDGE_METRICS_PORT": str(METRICS),
        "LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "edge"]
    if profile:
        command = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "edge"]
    return subprocess.Popen(pinned(0, command), cwd=ROOT, env=environment)


def main() -> int:
    """Run the benchmark; 0 if the bar is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--profile", default="", help="write a cProfile of the edge to this file")
    options = parser.parse_args()
    if shutil.which("nginx") is None:
        print("proxy: nginx is not installed (apt install nginx-light wrk); there is nothing to compare with")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ["UNKEY_VAR"] = str(folder / "var")
    children: list[subprocess.Popen[bytes]] = []
    met = False
    try:
        key = seed(UPSTREAM)
        children.append(
            nginx(folder, "upstream", _UPSTREAM.format(port=UPSTREAM, content="x" * 1024), core=1)
        )
        children.append(nginx(folder, "proxy", _PROXY.format(port=NGINX, upstream=UPSTREAM), core=0))
        children.append(start_edge(folder, options.profile))
        headers = {"Host": HOST, "Authorization": f"Bearer {key}"}
        for port in (NGINX, HTTP):
            assert len(wait_for(f"http://127.0.0.1:{port}/", headers)) == 1024

        def load(port: int, asked: list[str], seconds: float) -> Result:
            return run(
                f"http://127.0.0.1:{port}/",
                core=1,
                connections=options.connections,
                seconds=seconds,
                headers=headers,
                paths=asked,
            )

        paths = [f"/items/{number:04}?page={number % 7}" for number in range(PATHS)]
        for name, asked, bar in (("one path", ["/"], BAR), (f"{PATHS:,} paths", paths, 0.0)):
            edge = Side("edge", children[2], partial(load, HTTP, asked))
            other = Side("nginx", children[1], partial(load, NGINX, asked))
            reached = compare(edge, other, options.rounds, options.seconds)
            good = reached >= bar and not edge.failures
            print(f"proxy: {name}: ratio {reached:.2f}", end="")
            print(f" (bar {bar}) {'ok' if good else 'MISSED'}" if bar else "")
            met = good if bar else met
    finally:
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
