"""The command line against a server that speaks the API's envelopes over a real socket."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Answer = tuple[int, dict[str, Any]]
Unkey = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parent.parent.parent


class Server:
    """Answers operations from a table and keeps what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[dict[str, Any]], Answer]] = {}
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.path.removeprefix("/v2/")
                is_json = self.headers["Content-Type"] == "application/json"
                body = json.loads(raw) if is_json else {"bytes": len(raw)}
                outer.asked.append((operation, dict(self.headers), body))
                status, envelope = outer.answers[operation](body)
                text = json.dumps(envelope).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def data(value: Any, **more: Any) -> Callable[[dict[str, Any]], Answer]:
    return lambda _: (200, {"meta": {"requestId": "req_1"}, "data": value, **more})


def refusal(status: int, detail: str, **more: Any) -> Callable[[dict[str, Any]], Answer]:
    error = {
        "title": "No",
        "detail": detail,
        "status": status,
        "type": "https://x/errors/unkey/data/x_not_found",
    }
    return lambda _: (status, {"meta": {"requestId": "req_1"}, "error": {**error, **more}})


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def unkey(tmp_path: Path) -> Unkey:
    def run(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "UNKEY_CONFIG": str(tmp_path / "login.json"),
                **environ,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
        )

    return run


def test_login_keeps_a_key_that_works_readable_by_its_owner_alone(
    server: Server, unkey: Unkey, tmp_path: Path
) -> None:
    server.answers["projects.listProjects"] = data([], pagination={"hasMore": False})
    done = unkey("login", "--url", server.url, stdin="unkey_secret\n")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "login.json"
    assert json.loads(file.read_text()) == {"url": server.url, "rootKey": "unkey_secret"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert server.asked[0][1]["Authorization"] == "Bearer unkey_secret"
    assert "unkey_secret" not in done.stdout + done.stderr


def test_login_with_a_refused_key_keeps_nothing(server: Server, unkey: Unkey, tmp_path: Path) -> None:
    server.answers["projects.listProjects"] = refusal(401, "The provided root key is invalid.")
    done = unkey("login", "--url", server.url, stdin="unkey_wrong\n")
    assert (done.returncode, (tmp_path / "login.json").exists()) == (3, False)
    assert "The provided root key is invalid." in done.stderr


def test_without_a_login_the_status_is_3_and_the_text_says_what_to_do(unkey: Unkey) -> None:
    done = unkey("ps")
    assert done.returncode == 3
    assert "unkey login" in done.stderr


def test_an_api_that_cannot_be_reached_is_status_5(unkey: Unkey) -> None:
    done = unkey("ps", "--project", "abc", UNKEY_ROOT_KEY="k", UNKEY_API_URL="http://127.0.0.1:9")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_not_found_is_status_4_and_json_says_so_too(server: Server, unkey: Unkey) -> None:
    server.answers["deployments.listDeployments"] = refusal(404, "The project does not exist.")
    done = unkey("ps", "--project", "abc", "--json", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 4
    assert json.loads(done.stdout) == {"error": "The project does not exist.", "exitStatus": 4}


def test_faults_of_a_request_are_listed_with_their_locations(server: Server, unkey: Unkey) -> None:
    faults = [{"location": "body.variables[0].key", "message": "must match the pattern"}]
    server.answers["environments.setEnvironmentVariables"] = refusal(400, "bad", errors=faults)
    done = unkey("env", "set", "9X=1", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert "body.variables[0].key: must match the pattern" in done.stderr


def test_env_set_sends_values_with_equals_signs_whole(server: Server, unkey: Unkey) -> None:
    server.answers["environments.setEnvironmentVariables"] = data({})
    done = unkey("env", "set", "A=b=c", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 0, done.stderr
    assert server.asked[0][2]["variables"] == [{"key": "A", "value": "b=c", "kind": "writeonly"}]
    assert (
        unkey("env", "set", "A", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k").returncode == 2
    )


def test_a_failed_deployment_is_status_1_with_its_last_log_lines(
    server: Server, unkey: Unkey, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "Procfile").write_text("web: false\n")
    error = {"code": "unknown", "step": "deploying", "message": "the program exited with status 1\nlast line"}
    server.answers |= {
        "apps.getApp": data({"id": "app_1"}),
        "snapshots.createSnapshot": data({"image": "snapshot@sha256:" + "0" * 64}),
        "deployments.createDeployment": data({"deploymentId": "d_1"}),
        "deployments.listSteps": data({"steps": [], "urls": []}),
        "deployments.getDeployment": data({"status": "failed", "isCurrent": False, "error": error}),
    }
    done = unkey("deploy", str(source), "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert "the program exited with status 1" in done.stderr
    assert "last line" in done.stderr


def test_an_api_that_is_away_for_a_moment_does_not_end_the_watching(
    server: Server, unkey: Unkey, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "Procfile").write_text("web: true\n")
    ready = {"status": "ready", "isCurrent": True, "domains": ["abc.example"]}
    routing = {"step": "finalizing", "startedAt": 1}
    states = [refusal(500, "web restarts"), data({"status": "pending"}), data(ready), data(ready)]
    steps = [[], [routing], [{**routing, "endedAt": 2}]]
    server.answers |= {
        "apps.getApp": data({"id": "app_1"}),
        "snapshots.createSnapshot": data({"image": "snapshot@sha256:" + "0" * 64}),
        "deployments.createDeployment": data({"deploymentId": "d_1"}),
        "deployments.getDeployment": lambda body: states.pop(0)(body),
        "deployments.listSteps": lambda body: data({"steps": steps.pop(0), "urls": ["http://abc"]})(body),
    }
    done = unkey("deploy", "source", "--project", "abc", "--url", server.url, "--json", UNKEY_ROOT_KEY="k")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "ready"), done.stderr
    # It was ready once before the edges had confirmed its routes.
    assert (states, steps) == ([], [])


def test_a_wrong_use_has_a_document_too(server: Server, unkey: Unkey) -> None:
    done = unkey("deploy", "missing", "--url", server.url, "--json", UNKEY_ROOT_KEY="k")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"error": "missing is not a folder", "exitStatus": 2}


def test_a_folder_that_links_outside_is_refused_before_anything_is_sent(
    server: Server, unkey: Unkey, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "escape").symlink_to("/etc/passwd")
    done = unkey("deploy", str(source), "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (done.returncode, server.asked) == (1, [])
    assert "escape" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://127.0.0.1:99999", "http://localhost:abc"])
def test_a_url_that_is_none_is_wrong_usage(unkey: Unkey, url: str) -> None:
    done = unkey("ps", "--project", "abc", "--url", url, "--json", UNKEY_ROOT_KEY="k")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exitStatus"] == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["ключ", "a\nb"])
def test_a_root_key_that_no_header_can_carry_is_wrong_usage(unkey: Unkey, key: str) -> None:
    done = unkey("ps", "--project", "abc", "--root-key", key, "--json")
    assert (done.returncode, json.loads(done.stdout)["exitStatus"]) == (2, 2)


@pytest.mark.parametrize("text", ["[]", "{", '{"other": 1}'])
def test_a_login_file_that_login_did_not_write_is_status_3(unkey: Unkey, tmp_path: Path, text: str) -> None:
    (tmp_path / "login.json").write_text(text)
    done = unkey("ps", "--project", "abc")
    assert done.returncode == 3
    assert "run it again" in done.stderr


def test_logs_are_those_of_the_environment_that_was_named(server: Server, unkey: Unkey) -> None:
    rows = [{"id": "d_new", "isCurrent": False}, {"id": "d_old", "isCurrent": False}]
    server.answers |= {
        "deployments.listDeployments": data(rows, pagination={"hasMore": False}),
        "deployments.getLogs": data({"lines": [{"instance": "i_1", "text": "from preview"}]}),
    }
    options = ("--project", "abc", "--env", "preview", "--url", server.url)
    done = unkey("logs", *options, UNKEY_ROOT_KEY="k")
    assert "from preview" in done.stdout
    assert server.asked[0][2]["environment"] == "preview"
    assert server.asked[1][2]["deploymentId"] == "d_new"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"lines": [], "note": "The agent of region fra did not answer."}, "The agent of region fra"),
        ({"lines": []}, "d_1 has written nothing that is still kept"),
    ],
)
def test_logs_without_a_line_say_why(server: Server, unkey: Unkey, answer: dict[str, Any], told: str) -> None:
    server.answers["deployments.getLogs"] = data(answer)
    done = unkey("logs", "d_1", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (done.returncode, done.stdout) == (0, "")
    assert told in done.stderr


@pytest.mark.parametrize(("offered", "target"), [({"d_asleep": ["rollback"]}, "d_asleep"), ({}, "d_newest")])
def test_rollback_takes_the_one_before_also_when_it_sleeps_and_lets_the_api_say_why_not(
    server: Server, unkey: Unkey, offered: dict[str, list[str]], target: str
) -> None:
    rows = [
        {"id": name, "isCurrent": name == "d_live", "availableActions": offered.get(name, [])}
        for name in ("d_later", "d_live", "d_newest", "d_asleep")
    ]
    server.answers |= {
        "deployments.listDeployments": data(rows, pagination={"hasMore": False}),
        "deployments.rollbackDeployment": refusal(412, "A promote was asked for before."),
    }
    done = unkey("rollback", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (done.returncode, "A promote was asked for before." in done.stderr) == (1, True)
    assert server.asked[0][2]["status"] == ["ready", "stopped"]
    assert server.asked[1][2] == {"deploymentId": target}


def test_stop_takes_the_newest_that_can_be_stopped_and_waits_until_it_is(
    server: Server, unkey: Unkey
) -> None:
    rows = [
        {"id": "d_live", "availableActions": []},
        {"id": "d_preview", "availableActions": ["stop"]},
    ]
    statuses = ["ready", "ready", "stopped"]
    server.answers |= {
        "deployments.listDeployments": data(rows, pagination={"hasMore": False}),
        "deployments.stopDeployment": data({}),
        "deployments.getDeployment": lambda body: data({"status": statuses.pop(0)})(body),
        "deployments.getLastRequest": data({}),
    }
    done = unkey("stop", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (done.returncode, done.stdout.strip()) == (0, "✓ d_preview is stopped"), done.stderr
    asked = {"project": "abc", "app": "default", "status": ["ready", "stopped"], "limit": 100}
    assert server.asked[0][2] == asked


def test_a_start_that_fails_says_why(server: Server, unkey: Unkey) -> None:
    why = "Instances failed to start. here: exited with status 1"
    server.answers |= {
        "deployments.startDeployment": data({}),
        "deployments.getDeployment": data({"status": "stopped"}),
        "deployments.getLastRequest": data({"kind": "start", "status": "failed", "message": why}),
    }
    done = unkey("start", "d_1", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert why in done.stderr


def test_the_operator_who_lost_is_told_why(server: Server, unkey: Unkey) -> None:
    why = "Another deployment became the current one meanwhile. Look at it and decide again."
    server.answers |= {
        "deployments.rollbackDeployment": data({}),
        "deployments.getDeployment": data({"isCurrent": False, "project": "shop", "app": "default"}),
        "apps.getApp": data({"isRolledBack": False}),
        "deployments.getLastRequest": data({"kind": "rollback", "status": "failed", "message": why}),
    }
    done = unkey("rollback", "d_1", "--url", server.url, "--json", UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == {"message": why}
    server.answers["deployments.rollbackDeployment"] = refusal(412, "A promote to d_2 was asked for before.")
    done = unkey("rollback", "d_1", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (done.returncode, "A promote to d_2" in done.stderr) == (1, True)


def test_what_a_deployment_waits_for_is_shown_and_said_again_in_the_end(server: Server, unkey: Unkey) -> None:
    why = "No agent has reported from region fra yet: have its agent started again."
    step = {"step": "deploying", "startedAt": 1, "message": why}
    server.answers |= {
        "deployments.redeployDeployment": data({"deploymentId": "d_2"}),
        "deployments.listSteps": data({"steps": [step], "urls": []}),
        "deployments.getDeployment": data({"status": "deploying", "isCurrent": False}),
    }
    done = unkey("redeploy", "d_1", "--timeout", "0.2", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 6
    assert done.stdout.count(why) == 1
    assert f"d_2 is still deploying after 0 s; it goes on without us\n  {why}\n" in done.stderr


@pytest.mark.parametrize("verb", ["promote", "start"])
def test_a_request_that_takes_too_long_says_what_it_waits_for(
    server: Server, unkey: Unkey, verb: str
) -> None:
    why = "No agent has reported from region fra for 2 minutes: have its agent started again."
    server.answers |= {
        f"deployments.{verb}Deployment": data({}),
        "deployments.getDeployment": data(
            {"isCurrent": False, "status": "deploying", "project": "shop", "app": "default"}
        ),
        "apps.getApp": data({"isRolledBack": False}),
        "deployments.getLastRequest": data({"kind": verb, "status": "pending", "message": why}),
    }
    done = unkey(verb, "d_1", "--timeout", "0.2", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 6
    assert f"has not happened after 0 s\n  {why}\n" in done.stderr


@pytest.mark.parametrize("verb", ["rollback", "promote", "stop"])
def test_a_switch_outlives_a_moment_without_an_api(server: Server, unkey: Unkey, verb: str) -> None:
    done = {"isCurrent": True, "status": "stopped", "project": "shop", "app": "default"}
    states = [refusal(503, "web restarts"), data({**done, "isCurrent": False, "status": "ready"}), data(done)]
    last = [refusal(500, "web restarts"), data({})]
    apps = [
        refusal(502, "web restarts"),
        data({"isRolledBack": False}),
        data({"isRolledBack": verb == "rollback"}),
    ]
    server.answers |= {
        f"deployments.{verb}Deployment": data({}),
        "deployments.getDeployment": lambda body: states.pop(0)(body),
        "deployments.getLastRequest": lambda body: last.pop(0)(body),
        "apps.getApp": lambda body: apps.pop(0)(body),
    }
    ended = unkey(verb, "d_1", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert (ended.returncode, states, last) == (0, [], []), ended.stderr


@pytest.mark.parametrize(("status", "code"), [("cancelled", 0), ("stopped", 0), ("ready", 1)])
def test_cancel_takes_what_is_under_way(server: Server, unkey: Unkey, status: str, code: int) -> None:
    server.answers |= {
        "deployments.listDeployments": data([{"id": "d_1"}], pagination={"hasMore": False}),
        "deployments.cancelDeployment": data({}),
        "deployments.getDeployment": data({"status": status}),
    }
    done = unkey("cancel", "--project", "abc", "--url", server.url, "--json", UNKEY_ROOT_KEY="k")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (code, status)


def test_nothing_to_approve_says_so(server: Server, unkey: Unkey) -> None:
    server.answers["deployments.listDeployments"] = data([], pagination={"hasMore": False})
    done = unkey("approve", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert "nothing of abc / default awaits approval" in done.stderr


def test_whoever_redeploys_sees_how_many_build_before_and_why_it_ended(server: Server, unkey: Unkey) -> None:
    queued = {"step": "queued", "startedAt": 1}
    waiting = {**queued, "message": "waiting for a build slot: 2 before you"}
    given_up = {**queued, "endedAt": 5, "error": "superseded by newer commit"}
    steps = [[waiting], [waiting], [queued], [given_up]]
    statuses = ["pending", "pending", "pending", "superseded"]
    server.answers |= {
        "deployments.redeployDeployment": data({"deploymentId": "d_2"}),
        "deployments.getDeployment": lambda body: data({"status": statuses.pop(0), "isCurrent": False})(body),
        "deployments.listSteps": lambda body: data({"steps": steps.pop(0), "urls": []})(body),
    }
    done = unkey("redeploy", "d_1", "--force", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:-1] == ["  … waiting for a build slot: 2 before you"]
    assert "d_2 superseded at step queued" in done.stderr
    assert "superseded by newer commit" in done.stderr
    assert server.asked[0][2] == {"deploymentId": "d_1", "force": True}


def test_the_command_imports_neither_django_nor_the_packer_at_start() -> None:
    code = "import sys, cli.main; print([m for m in ('django', 'celery', 'apps', 'pathspec', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ps_shows_how_many_instances_run_and_how_often_they_were_started_again(
    server: Server, unkey: Unkey
) -> None:
    row = {"status": "ready", "isCurrent": True, "environment": "production", "createdAt": 0}
    rows = [
        {**row, "id": "d_new", "instances": {"running": 2, "total": 3, "restarts": 7}},
        {**row, "id": "d_old", "isCurrent": False},
    ]
    server.answers["deployments.listDeployments"] = data(rows, pagination={"hasMore": False})
    done = unkey("ps", "--project", "abc", "--url", server.url, UNKEY_ROOT_KEY="k")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    (new,) = [words for words in lines if "d_new" in words]
    (old,) = [words for words in lines if "d_old" in words]
    assert new[1:6] == ["d_new", "ready", "production", "2/3", "7"]
    assert old[:3] == ["d_old", "ready", "production"]
