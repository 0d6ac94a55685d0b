"""`make demo`: deploys a real program, guards it, serves it, breaks it, rolls it back, lets it sleep.

Everything after the first root key goes through the public interfaces: the `unkey` command and `/v2`.
Writes `var/demo.json`; with KEEP=1 the system is left running (`make down` stops it).
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HELLO = ROOT / "examples" / "hello"
VAR = Path(os.environ.get("UNKEY_VAR", ROOT / "var")).absolute()
PYTHON = sys.executable
PORT_SETTINGS = {
    "WEB_PORT": 8080,
    "FEED_PORT": 8081,
    "AGENT_PORT": 8070,
    "EDGE_API_PORT": 7070,
    "EDGE_HTTP_PORT": 7080,
    "EDGE_HTTPS_PORT": 7443,
    "EDGE_METRICS_PORT": 9090,
}
START_SECONDS = 90
SWITCH_SECONDS = 10
CALLERS = 4
# What a demo need not wait for: previews sleep after 6 hours without requests.
SHORTENED = {"PREVIEW_IDLE_SECONDS": "3"}
# Version 2 of the example no longer greets nobody in particular, which breaks whoever relied on that.
SECOND = (
    ("VERSION", "1", "2"),
    ("openapi.yaml", "          in: query\n", "          in: query\n          required: true\n"),
    (
        "app.py",
        """name = parse_qs(url.query).get("name", ["world"])[0]\n""",
        """name = parse_qs(url.query).get("name", [""])[0]
            if not name:
                return self.answer({"error": "name is required"}, 400)\n""",
    ),
)
BROKEN = """
import sys, time
print("connecting to postgres://db:5432", flush=True)
time.sleep(0.2)
sys.exit("no answer from postgres://db:5432: is DATABASE_URL right?")
"""


class DemoFailed(Exception):
    """A step did not do what it says."""


class Story:
    """Runs the steps, prints them, and keeps how long each took."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Print a step with its duration; a failure names it."""
        print(f"  {text} … ", end="", flush=True)
        began = time.monotonic()
        try:
            yield
        except BaseException:
            print("failed", flush=True)
            raise
        self.timings[name] = round(time.monotonic() - began, 3)
        print(f"{self.timings[name]:.2f} s", flush=True)

    def note(self, text: str) -> None:
        """Print what came of the step before."""
        print(f"      {text}", flush=True)


def expect(condition: bool, message: str) -> None:
    """Raise DemoFailed unless the condition holds."""
    if not condition:
        raise DemoFailed(message)


class System:
    """The platform: `manage.py up` as a child process, with its ports and a root key.

    Args:
        var: its folder.
        arguments: of `up`.
    """

    def __init__(self, var: Path, *arguments: str) -> None:
        self.var = var
        self.arguments = arguments
        self.environ = {**os.environ, "UNKEY_VAR": str(var)}
        if any(_taken(int(self.environ.get(name, default))) for name, default in PORT_SETTINGS.items()):
            self.environ.setdefault("PORTS", "auto")
        self.process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}

    def manage(self, *arguments: str, **environ: str) -> str:
        """Run a management command and return what it printed."""
        done = subprocess.run(
            [PYTHON, "manage.py", *arguments],
            cwd=ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DemoFailed(f"manage.py {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self) -> None:
        """Start everything and wait until every process is healthy."""
        run = self.var / "run"
        self.var.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run / "ports.json").unlink(missing_ok=True)
        with (self.var / "up.log").open("a") as log:
            self.process = subprocess.Popen(
                [PYTHON, "manage.py", "up", *self.arguments],
                cwd=ROOT,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (run / "ports.json").exists():
            if self.process.poll() is not None:
                raise DemoFailed(
                    f"`manage.py up` ended with status {self.process.returncode}:\n{self.tail()}"
                )
            expect(time.monotonic() < deadline, f"`manage.py up` names no ports:\n{self.tail()}")
            time.sleep(0.05)
        self.ports = json.loads((run / "ports.json").read_text())
        self.wait_healthy()

    def wait_healthy(
        self, ports: tuple[str, ...] = ("WEB_PORT", "FEED_PORT", "AGENT_PORT", "EDGE_METRICS_PORT")
    ) -> None:
        """Wait until the processes behind these ports say that they are ready."""
        deadline = time.monotonic() + START_SECONDS
        while not all(self._healthy(self.ports[name]) for name in ports):
            if self.process is not None and self.process.poll() is not None:
                raise DemoFailed(
                    f"`manage.py up` ended with status {self.process.returncode}:\n{self.tail()}"
                )
            expect(time.monotonic() < deadline, f"not healthy within {START_SECONDS} s:\n{self.tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything and wait for it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise DemoFailed("the system did not stop within 60 s") from None

    def tail(self) -> str:
        """Return the last lines that the system wrote."""
        return "\n".join((self.var / "up.log").read_text().splitlines()[-20:])

    def visitor(self, host: str) -> "Visitor":
        """Return a visitor of a deployed app."""
        return Visitor(
            host, self.ports["EDGE_HTTP_PORT"], self.ports["EDGE_HTTPS_PORT"], self.var / "ca" / "ca.pem"
        )

    def url(self, port: str) -> str:
        """Return `http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.ports[port]}"

    def _healthy(self, port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Platform:
    """The public interfaces: `/v2` and the `unkey` command.

    Args:
        api_url: the edge's API port.
        root_key: of the workspace.
        login: the file that the command would keep its login in.
    """

    def __init__(self, api_url: str, root_key: str, login: Path) -> None:
        self.root_key = root_key
        self.environ = {
            **os.environ,
            "UNKEY_API_URL": api_url,
            "UNKEY_ROOT_KEY": root_key,
            "UNKEY_CONFIG": str(login),
            "PYTHONPATH": str(ROOT),
        }
        self._address = api_url.removeprefix("http://")

    def call(
        self, operation: str, body: dict[str, Any], *, status: int | tuple[int, ...] = (200, 201, 202)
    ) -> Any:
        """Call an operation; returns its data."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.request(
            "POST",
            f"/v2/{operation}",
            json.dumps(body),
            {"Authorization": f"Bearer {self.root_key}", "Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        envelope = json.loads(answer.read())
        connection.close()
        allowed = (status,) if isinstance(status, int) else status
        expect(answer.status in allowed, f"{operation} answered {answer.status}: {envelope.get('error')}")
        return envelope.get("data")

    def unkey(self, *arguments: str) -> Any:
        """Run the `unkey` command with --json; returns its document."""
        done = subprocess.run(
            [PYTHON, "-m", "cli.main", *arguments, "--json"],
            env=self.environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        expect(
            done.returncode == 0,
            f"unkey {' '.join(arguments[:2])} exited with {done.returncode}: {done.stderr.strip()}",
        )
        return json.loads(done.stdout)


class Visitor:
    """Calls the deployed app by its host name.

    Args:
        host: the generated host name.
        http_port: the edge's HTTP port on this machine.
        https_port: the edge's HTTPS port.
        authority: file of the certificate authority that signs the host's certificate.
    """

    def __init__(self, host: str, http_port: int, https_port: int, authority: Path) -> None:
        self.host = host
        self.http_port = http_port
        self.https_port = https_port
        self.authority = authority

    def get(self, path: str = "/", key: str | None = None, *, tls: bool = False) -> tuple[int, Any]:
        """Return the status and the JSON body of a GET."""
        connection = self.connect(tls)
        try:
            return self.fetch(connection, path, key)
        finally:
            connection.close()

    def connect(self, tls: bool = False) -> http.client.HTTPConnection:
        """Open a connection; by TLS, the certificate must be good for the host name."""
        if not tls:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        raw = socket.create_connection(("127.0.0.1", self.https_port), timeout=30)
        context = ssl.create_default_context(cafile=self.authority)
        connection = http.client.HTTPConnection(self.host)
        connection.sock = context.wrap_socket(raw, server_hostname=self.host)
        return connection

    def wake(self) -> tuple[int, str]:
        """Return the status of a GET, and how long it was held until the deployment was awake."""
        connection = self.connect()
        try:
            connection.request("GET", "/", headers={"Host": self.host, "Accept": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("X-Unkey-Wake", "")
        finally:
            connection.close()

    def fetch(self, connection: http.client.HTTPConnection, path: str, key: str | None) -> tuple[int, Any]:
        """Return the status and the JSON body of a GET on an open connection."""
        headers = {"Host": self.host, "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else None

    def until_version(self, version: str, key: str | None) -> None:
        """Wait until the host serves a version, then see that it stays so.

        Raises:
            DemoFailed: it does not within ten seconds, or an older answer comes after a newer one.
        """
        deadline = time.monotonic() + SWITCH_SECONDS
        while True:
            status, body = self.get("/", key)
            if status == 200 and body["version"] == version:
                break
            expect(time.monotonic() < deadline, f"version {version} is not served: {status} {body}")
            time.sleep(0.02)
        for _ in range(20):
            status, body = self.get("/", key)
            expect(
                status == 200 and body["version"] == version, f"after version {version} came {status} {body}"
            )


class Background:
    """Callers that keep calling the app and count what fails."""

    def __init__(self, visitor: Visitor, key: str) -> None:
        self.requests = 0
        self.failures: list[str] = []
        self._visitor = visitor
        self._key = key
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]

    def start(self) -> None:
        """Start calling."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop calling."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        connection = self._visitor.connect()
        while not self._stop.is_set():
            problem = ""
            try:
                status, _ = self._visitor.fetch(connection, "/", self._key)
                if status != 200:
                    problem = f"status {status}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = repr(error)
                connection.close()
                connection = self._visitor.connect()
            with self._lock:
                self.requests += 1
                if problem:
                    self.failures.append(problem)
            self._stop.wait(0.005)
        connection.close()


def run(story: Story, system: System) -> dict[str, Any]:
    """Play the whole story; returns the facts for `demo.json`."""
    with story.step("start", "start the system"):
        if (VAR / "run" / "up.pid").exists():
            system.manage("down")
        system.start()
    password = secrets.token_urlsafe(12)
    with story.step("bootstrap", "make a workspace, a root key and an admin"):
        workspace = json.loads(
            system.manage("create_workspace", "Demo", "--slug", "demo", "--exist-ok", "--json")
        )
        root = json.loads(
            system.manage("create_root_key", "--workspace", "demo", "--name", "demo", "--all", "--json")
        )
        system.manage("create_admin", "--username", "admin", DJANGO_SUPERUSER_PASSWORD=password)
    platform = Platform(system.url("EDGE_API_PORT"), root["root_key"], VAR / "demo-login.json")

    project, app, environment = "hello", "default", "production"
    place = {"project": project, "app": app, "environment": environment}
    options = ("--project", project, "--app", app, "--env", environment)
    with story.step("project", "create project hello, set a variable"):
        _remove_earlier(platform, project)
        _until(lambda: _create_project(platform, project), f"the name {project} is not free", 30)
        platform.call("apps.createApp", {"project": project, "name": "Default", "slug": app})
        platform.unkey("env", "set", "GREETING=Good day", *options)

    with story.step("deploy_1", "deploy version 1"):
        first = platform.unkey("deploy", str(HELLO), *options)
    host = min(first["domains"], key=len)
    visitor = system.visitor(host)
    with story.step("call_1", f"call {host}"):
        visitor.until_version("1", None)
        status, body = visitor.get("/greet?name=Ada")
        expect(
            (status, body["message"]) == (200, "Good day, Ada!"), f"the variable is not seen: {status} {body}"
        )

    with story.step("key", "create an API, a role, and a key that has it"):
        api = platform.call("apis.createApi", {"name": "hello-demo"})["apiId"]
        permission = {"name": "greet", "slug": "hello.greet"}
        platform.call("permissions.createPermission", permission, status=(200, 409))
        platform.call(
            "permissions.createRole", {"name": "greeter", "permissions": ["hello.greet"]}, status=(200, 409)
        )
        asked = {"apiId": api, "name": "visitor", "externalId": "ada", "roles": ["greeter"]}
        key = platform.call("keys.createKey", asked)["key"]
    with story.step("policy", "switch on keyauth, for /greet with a permission, and redeploy"):
        policies = [
            {
                "name": "greeters only",
                "enabled": True,
                "match": [{"path": {"path": {"prefix": "/greet"}}}],
                "keyauth": {"keyspaces": [api], "permissionQuery": "hello.greet"},
            },
            {"name": "keys only", "enabled": True, "keyauth": {"keyspaces": [api]}},
        ]
        platform.call("gateway.setPolicies", {**place, "policies": policies})
        again = platform.call(
            "deployments.createDeployment", {**place, "deployment": {"deploymentId": first["deploymentId"]}}
        )
        _until_status(platform, again["deploymentId"], "ready")
    with story.step("guard", "call without a key: 401; with it: 200; by HTTPS: 200"):
        _until(lambda: visitor.get("/")[0] == 401, "a call without a key is not refused")
        expect(visitor.get("/", "unknown_key")[0] == 401, "an unknown key is not refused")
        status, body = visitor.get("/whoami", key)
        expect(
            status == 200 and body["principal"]["subject"] == "ada", f"the key is refused: {status} {body}"
        )
        expect(visitor.get("/", key, tls=True)[0] == 200, "HTTPS does not answer 200")
        expect(visitor.get("/", None, tls=True)[0] == 401, "HTTPS lets a call without a key through")
    with story.step("credits", "exhaust a key with 3 credits: the 4th call is refused"):
        asked = {"apiId": api, "name": "trial", "credits": {"remaining": 3}}
        poor = platform.call("keys.createKey", asked)
        codes = [platform.call("keys.verifyKey", {"key": poor["key"]})["code"] for _ in range(4)]
        expect(codes == ["VALID", "VALID", "VALID", "USAGE_EXCEEDED"], f"codes are {codes}")

    _share(story, platform, visitor, api)
    background = Background(visitor, key)
    background.start()
    try:
        with tempfile.TemporaryDirectory(prefix="hello-2-") as folder:
            _write_second_version(Path(folder))
            with story.step("deploy_2", "deploy version 2 under load"):
                second = platform.unkey("deploy", folder, *options)
                visitor.until_version("2", key)
        breaking = _compare(story, platform, again["deploymentId"], second["deploymentId"])
        expect(visitor.get("/greet", key)[0] == 400, "version 2 does not demand a name")
        broken, preview, queued = _break(story, platform, second["image"], options, place)
        expect(visitor.get("/", key)[1]["version"] == "2", "the failed deployment has changed what is served")
        preview_visitor = system.visitor(min(preview["domains"], key=len))
        with story.step("preview", f"call {preview_visitor.host}"):
            preview_visitor.until_version("2", None)
        with story.step("rollback", "roll back, see version 1"):
            platform.unkey("rollback", again["deploymentId"], *options)
            visitor.until_version("1", key)
        with story.step("promote", "promote, see version 2"):
            platform.unkey("promote", second["deploymentId"], *options)
            visitor.until_version("2", key)
    finally:
        background.stop()
    with story.step(
        "sleep", f"nobody calls the preview for {SHORTENED['PREVIEW_IDLE_SECONDS']} s: it sleeps"
    ):
        _until_status(platform, preview["id"], "stopped")
    with story.step("wake", "call it: the request is held while it wakes"):
        status, woken = preview_visitor.wake()
        expect(status == 200 and woken != "", f"the preview did not wake: {status} {woken}")
    story.note(f"200, X-Unkey-Wake: {woken}")
    usage = _usage(story, system, poor["keyId"])
    facts = {
        "web_url": system.url("WEB_PORT"),
        "api_url": system.url("EDGE_API_PORT"),
        "http_url": system.url("EDGE_HTTP_PORT"),
        "https_url": f"https://127.0.0.1:{system.ports['EDGE_HTTPS_PORT']}",
        "root_key": root["root_key"],
        "workspace_id": workspace["workspace_id"],
        "project": project,
        "app": app,
        "environment": environment,
        "host": host,
        "preview_host": preview_visitor.host,
        "breaking_changes": breaking,
        "failed": {"deployment_id": broken["id"], **broken["error"]},
        "queued": queued,
        "wake": woken,
        "usage": usage,
        "key": key,
        "admin_user": "admin",
        "admin_password": password,
        "timings": story.timings,
        "background_requests": background.requests,
        "background_failures": len(background.failures),
    }
    _write(facts)
    expect(background.requests > 0, "the background client made no request")
    expect(
        not background.failures,
        f"{len(background.failures)} of {background.requests} background requests failed: {background.failures[:3]}",
    )
    return facts


def main() -> int:
    """Run the demo; returns the exit status."""
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    story = Story()
    system = System(VAR)
    system.environ = SHORTENED | system.environ
    began = time.monotonic()
    print("unkey demo: one program, deployed, guarded, broken, rolled back, asleep and awake again\n")
    try:
        facts = run(story, system)
        if not keep:
            with story.step("stop", "stop the system"):
                system.stop()
    except DemoFailed as failure:
        print(f"\ndemo failed: {failure}", file=sys.stderr)
        _report_log(system)
        system.stop()
        return 1
    except KeyboardInterrupt:
        system.stop()
        return 130
    except BaseException:
        system.stop()
        raise
    _write(facts)
    print(
        f"\n  background client: {facts['background_requests']} requests, {facts['background_failures']} failed"
        f"\n  all of it: {time.monotonic() - began:.1f} s; facts in {VAR / 'demo.json'}"
    )
    if keep:
        print(
            f"\n  the system is still running (`make down` stops it):"
            f"\n    app    curl -H 'Host: {facts['host']}' -H 'Authorization: Bearer {facts['key']}' {facts['http_url']}/"
            f"\n    admin  {facts['web_url']}/admin/   {facts['admin_user']} / {facts['admin_password']}"
            f"\n    API    {facts['api_url']}/v2/…   root key {facts['root_key']}"
        )
    else:
        print("\n  nothing is left running. To look around: KEEP=1 make demo, or make up")
    return 0


def _remove_earlier(platform: Platform, slug: str) -> None:
    for row in platform.call("projects.listProjects", {"limit": 100}):
        if row["slug"] == slug:
            platform.call("projects.deleteProject", {"project": row["id"]})


def _create_project(platform: Platform, slug: str) -> bool:
    """Create a project; says whether its slug was free: a deleted project gives it up in the background."""
    body = {"name": slug.title(), "slug": slug}
    return platform.call("projects.createProject", body, status=(200, 409)) is not None


def _write_second_version(folder: Path) -> None:
    shutil.copytree(HELLO, folder, dirs_exist_ok=True)
    for name, old, new in SECOND:
        text = (folder / name).read_text()
        expect(text.count(old) == 1, f"version 2 cannot be made of {HELLO / name}")
        (folder / name).write_text(text.replace(old, new))


def _share(story: Story, platform: Platform, visitor: Visitor, api: str) -> None:
    """Two keys of one identity share its limit; a key without a role is refused, then replaced twice."""

    def code(key: str) -> str:
        return str(platform.call("keys.verifyKey", {"key": key})["code"])

    with story.step("limit", "two keys of one identity share a limit of 3: the 4th call is refused"):
        shared = {"name": "requests", "limit": 3, "duration": 3_600_000, "autoApply": True}
        who = f"team-{secrets.token_hex(4)}"
        platform.call("identities.createIdentity", {"externalId": who, "ratelimits": [shared]})
        pair = [
            platform.call("keys.createKey", {"apiId": api, "name": name, "externalId": who})
            for name in ("laptop", "server")
        ]
        codes = [code(pair[index % 2]["key"]) for index in range(4)]
        expect(codes == ["VALID", "VALID", "VALID", "RATE_LIMITED"], f"codes are {codes}")
    with story.step("role", "a key without the role: 403 for /greet, 200 for the rest"):
        plain = platform.call("keys.createKey", {"apiId": api, "name": "guest", "externalId": "bob"})
        statuses = [visitor.get(path, plain["key"])[0] for path in ("/greet", "/")]
        expect(statuses == [403, 200], f"statuses are {statuses}")
    with story.step("reroll", "replace that key, with an hour of grace, and again with none"):
        asked = {"keyId": plain["keyId"], "expiration": 3_600_000}
        second = platform.call("keys.rerollKey", asked)
        codes = [code(second["key"]), code(plain["key"])]
        expect(codes == ["VALID", "VALID"], f"codes are {codes}")
        third = platform.call("keys.rerollKey", {"keyId": second["keyId"], "expiration": 0})["key"]
        _until(lambda: code(second["key"]) == "EXPIRED", "the key replaced without grace goes on working")
        codes = [code(third), code(plain["key"])]
        expect(codes == ["VALID", "VALID"], f"after the second replacement codes are {codes}")


def _usage(story: Story, system: System, key_id: str) -> list[dict[str, Any]]:
    """Show how often each key was used, once the events of the one with 3 credits are there."""
    asked = ("analytics", "keys", "demo", "--hours", "1")
    counts: list[dict[str, Any]] = []

    def arrived() -> bool:
        counts[:] = json.loads(system.manage(*asked, "--json"))
        of_the_key = [one["outcomes"] for one in counts if one["keyId"] == key_id]
        return of_the_key == [{"VALID": 3, "USAGE_EXCEEDED": 1}]

    with story.step("usage", "count what every key was used"):
        _until(arrived, "the events of verifications do not arrive", 30)
    for line in system.manage(*asked).splitlines():
        story.note(line)
    return counts


def _compare(story: Story, platform: Platform, old: str, new: str) -> list[str]:
    """Compare what two deployments said of themselves in OpenAPI; returns what breaks clients."""

    def described(deployment: str) -> bool:
        asked = {"deploymentId": deployment}
        return platform.call("deployments.getOpenapiSpec", asked, status=(200, 404)) is not None

    with story.step("diff", "compare the APIs of both versions"):
        _until(lambda: described(old) and described(new), "a version's OpenAPI document is not there")
        changes = platform.unkey("diff", old, new)["changes"]
    breaking = [change for change in changes if change["level"] == 3]
    expect(len(breaking) == 1, f"not one breaking change but {breaking}")
    for change in breaking:
        story.note(f"breaks clients: {change['operation']} {change['path']}: {change['text']}")
    return [change["id"] for change in breaking]


def _break(
    story: Story, platform: Platform, image: str, options: tuple[str, ...], place: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Deploy a broken version, and a preview that waits for its turn; returns both and what it waited for."""
    with tempfile.TemporaryDirectory(prefix="hello-3-") as folder:
        shutil.copytree(HELLO, folder, dirs_exist_ok=True)
        (Path(folder) / "app.py").write_text(BROKEN)
        with story.step("queue", "deploy a broken version and a preview at once: one builds, one waits"):
            broken = platform.unkey("deploy", folder, "--no-wait", *options)["deploymentId"]
            asked = {**place, "environment": "preview", "image": {"dockerImage": image}}
            preview = platform.call("deployments.createDeployment", asked)["deploymentId"]
            queued: list[str] = []

            def waits() -> bool:
                steps = platform.call("deployments.listSteps", {"deploymentId": preview})["steps"]
                queued[:] = [step.get("message", "") for step in steps if step["step"] == "queued"]
                return bool(queued and queued[0])

            _until(waits, "the preview does not wait for a build slot")
    story.note(f"preview: {queued[0]}")
    with story.step("failed", "the broken one fails and says why; version 2 keeps serving"):
        failed = _until_status(platform, broken, "failed")
    for line in failed["error"]["message"].splitlines()[-2:]:  # what it wrote last, and what to do
        story.note(line)
    with story.step("next", "the preview builds, and has a host name of its own"):
        ready = _until_status(platform, preview, "ready")
    return failed, ready, queued[0]


def _until_status(platform: Platform, deployment: str, status: str) -> dict[str, Any]:
    """Wait for a deployment to reach a status; returns it."""
    found: list[dict[str, Any]] = []

    def reached() -> bool:
        row = platform.call("deployments.getDeployment", {"deploymentId": deployment})
        expect(status == "failed" or row["status"] != "failed", f"deployment failed: {row.get('error')}")
        found[:] = [row]
        return bool(row["status"] == status)

    _until(reached, f"{deployment} is not {status}", 60)
    return found[0]


def _until(holds: Callable[[], bool], otherwise: str, seconds: float = SWITCH_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        expect(time.monotonic() < deadline, otherwise)
        time.sleep(0.03)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _write(facts: dict[str, Any]) -> None:
    draft = VAR / "demo.json.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump(facts, out, indent=2)
    draft.replace(VAR / "demo.json")


def _report_log(system: System) -> None:
    if (system.var / "up.log").exists():
        print(f"last lines of {system.var / 'up.log'}:\n{system.tail()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
