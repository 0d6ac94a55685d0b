"""Policies: what each kind costs a request in the edge's processor time, and ten of them against none.

    python -m benchmarks.policies [--seconds 1] [--rounds 3] [--only openapi]

One edge process on core 0 has a deployment for each kind, before the same upstream (nginx, 1 KiB from memory);
load and upstream have core 1. Each kind is loaded in turn with the deployment that has no policy, and its cost is
the median difference of the pairs. The bar is for throughput: with ten policies at least half of that without.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import Result, run
from benchmarks.proxy import _UPSTREAM, HTTP, UPSTREAM, nginx, start_edge, wait_for
from benchmarks.sides import Side

BAR = 0.5
PATH = "/items/1234?page=3"
NONE, TEN = "none", "ten"
_DOCUMENT = """
openapi: 3.1.0
info: {title: items, version: "1"}
paths:
  /items/{id}:
    get:
      parameters:
        - {name: id, in: path, required: true, schema: {type: integer, minimum: 1}}
        - {name: page, in: query, schema: {type: integer, minimum: 0, maximum: 100}}
        - {name: accept-language, in: header, schema: {type: string}}
"""


def never(**match: Any) -> dict[str, Any]:
    """Return a firewall policy that no request here matches."""
    return {"match": [match], "firewall": {"action": "ACTION_DENY"}}


def kinds(key_space: str, public_key: str, hashed: str) -> dict[str, list[dict[str, Any]]]:
    """Return policies by what they are called here."""
    location = [{"header": {"name": "x-api-key"}}]
    one: dict[str, dict[str, Any]] = {
        "keyauth": {"keyauth": {"keyspaces": [key_space], "locations": location}},
        "jwtauth": {"jwtauth": {"publicKeyPem": public_key, "locations": [{"header": {"name": "x-token"}}]}},
        "basicauth": {"basicauth": {"credentials": [{"username": "ali", "passwordHash": hashed}]}},
        "ipRules": {"ipRules": {"deny": [f"10.{number}.0.0/16" for number in range(250)]}},
        "ratelimit": {
            "ratelimit": {"limit": 10**9, "windowMs": 60_000, "identifiers": [{"remoteIp": {}}, {"path": {}}]}
        },
        "firewall, a prefix": never(path={"path": {"prefix": "/admin"}}),
        "firewall, a pattern": never(path={"path": {"regex": r"\.(php|asp)x?$"}}),
        "firewall, a header": never(header={"name": "x-evil", "present": True}),
        "openapi": {"openapi": {}},
        "logging, headers": {"logging": {"requestHeaders": True, "responseHeaders": True}},
        "logging, bodies": {"logging": {"requestBody": True, "responseBody": True, "maxBodyBytes": 4096}},
    }
    ten = [policy for name, policy in one.items() if name != "logging, bodies"]
    return {NONE: [], **{name: [policy] for name, policy in one.items()}, TEN: ten}


def seed(port: int) -> tuple[list[str], dict[str, str]]:
    """Make a deployment for each kind; return their names, and headers that all of them let through."""
    import django
    from django.core.management import call_command

    os.environ["DJANGO_SETTINGS_MODULE"] = "unkey.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    import base64

    import bcrypt
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from django.db import transaction

    from apps.cluster import versions
    from apps.cluster.models import Region
    from apps.deployments import openapi
    from apps.deployments.models import Deployment, Instance
    from apps.keys import services as keys
    from apps.projects.models import App, Environment, Project
    from apps.routing import contracts
    from apps.routing.models import Contract, FrontlineRoute, Sentinel
    from apps.workspaces.models import shard_of
    from apps.workspaces.services import create_workspace
    from unkey import clock
    from unkey.actors import system
    from unkey.tenancy import workspace_scope

    actor = system("benchmark")
    signing = ec.generate_private_key(ec.SECP256R1())
    public = signing.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    hashed = bcrypt.hashpw(b"sesame", bcrypt.gensalt(4)).decode()
    plan, fault = contracts.of_document(openapi.pack(openapi.parse(_DOCUMENT)), "")
    assert not fault
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
        made = kinds(api.key_space_id, public.decode(), hashed)
        rows: list[Any] = []
        for number, policies in enumerate(made.values()):
            deployment = Deployment.objects.create(**tenant, **level, settings={}, regions=[])
            named = [
                {"id": f"pol_{place}", "name": "p", "enabled": True, **policy}
                for place, policy in enumerate(policies)
            ]
            rows += [
                Instance(
                    deployment=deployment,
                    region=region,
                    name="a",
                    address=f"127.0.0.1:{port}",
                    status="running",
                ),
                FrontlineRoute(**tenant, **level, fqdn=host(number), deployment=deployment, sticky="live"),
                Contract(deployment=deployment, **tenant, plan=plan),
                Sentinel(deployment=deployment, **tenant, environment=environment, policies=named),
            ]
        order = (Instance, FrontlineRoute, Contract, Sentinel)
        for row in sorted(rows, key=lambda row: order.index(type(row))):
            versions.stamp(row)
            row.save()
    token = jwt.encode({"sub": "ali", "exp": clock.now_ms() // 1000 + 3600}, signing, "ES256")
    headers = {
        "x-api-key": text,
        "x-token": token,
        "Authorization": "Basic " + base64.b64encode(b"ali:sesame").decode(),
        "Accept-Language": "en",
    }
    return list(made), headers


def host(number: int) -> str:
    """Return the host name of a kind."""
    return f"k{number}.unkey.localhost"


def main() -> int:
    """Run the benchmark; 0 if the bar is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", default="", help="kinds that begin so; ten of them are always measured")
    parser.add_argument("--profile", default="", help="write a cProfile of the edge to this file")
    options = parser.parse_args()
    if shutil.which("nginx") is None:
        print("policies: nginx is not installed (apt install nginx-light wrk); there is no upstream")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ["UNKEY_VAR"] = str(folder / "var")
    children: list[subprocess.Popen[bytes]] = []
    try:
        names, headers = seed(UPSTREAM)
        upstream = _UPSTREAM.format(port=UPSTREAM, content="x" * 1024)
        children.append(nginx(folder, "upstream", upstream, core=1))
        children.append(start_edge(folder, options.profile))
        url = f"http://127.0.0.1:{HTTP}{PATH}"

        def load(number: int, seconds: float) -> Result:
            return run(
                url,
                core=1,
                connections=options.connections,
                seconds=seconds,
                headers={**headers, "Host": host(number)},
                paths=[PATH],
            )

        ratio = 0.0
        failures = 0
        for number, name in enumerate(names):
            assert len(wait_for(url, {**headers, "Host": host(number)})) == 1024, name
            if name == NONE or (name != TEN and not name.startswith(options.only)):
                continue
            bare = Side(NONE, children[1], partial(load, names.index(NONE)))
            side = Side(name, children[1], partial(load, number))
            pairs = [(bare.run(options.seconds), side.run(options.seconds)) for _ in range(options.rounds)]
            ratio = statistics.median(rate / without for without, rate in pairs)
            cost = statistics.median(
                much - little for much, little in zip(side.costs, bare.costs, strict=True)
            )
            failures += side.failures + bare.failures
            print(
                f"policies: {name:<20} {cost:>6.1f} us each, {ratio:.2f} of the throughput without",
                flush=True,
            )
        met = ratio >= BAR and not failures
        print(
            f"policies: ten: ratio {ratio:.2f} (bar {BAR}), failures {failures} {'ok' if met else 'MISSED'}"
        )
    finally:
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
