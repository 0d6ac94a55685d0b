"""What a source says to run."""

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.builds import webapps
from apps.builds.detection import NothingToRun, Plan, plan
from unkey import snapshots

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "import flask\napp = flask.Flask(__name__)\n"
PIP = ["python", "-m", "pip", "install"]


def detect(
    folder: Path, files: Mapping[str, str | bytes], command: tuple[str, ...] = (), root_directory: str = "."
) -> Plan:
    """Plan for a source of these files."""
    source = folder / "source"
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    archive = io.BytesIO()
    snapshots.pack(source, archive)
    return plan(archive, command=list(command), root_directory=root_directory)


def shell(line: str) -> list[str]:
    return ["/bin/sh", "-c", line]


def test_a_procfile_goes_first_and_to_the_shell_as_it_is(tmp_path: Path) -> None:
    line = "NAME='a b' python app.py --port \"$PORT\"  # not for us"
    found = detect(
        tmp_path,
        {"Procfile": f"# what runs\r\n\r\nworker: sleep 1\r\nweb : {line}\r\n", "index.html": ""},
        command=("other",),
    )
    assert found == Plan("procfile", shell(line))


def test_a_procfile_program_gets_its_requirements(tmp_path: Path) -> None:
    found = detect(tmp_path, {"Procfile": "web: python app.py", "requirements.txt": "# none\nhttpx==0.28\n"})
    assert found.install == [*PIP, "-r", "requirements.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "Procfile line 1 is not of the form 'name: command'."),
        ("web:", "Procfile line 1 has no command after 'web:'."),
        ("web: # later", "Procfile line 1 has no command after 'web:'."),
        ("web: a\nweb: b", "Procfile line 2 says 'web:' a second time."),
        (b"web: \xff", "Procfile is not UTF-8 text."),
        ("#" * 300_000, "Procfile is larger than 256 KiB."),
    ],
)
def test_a_malformed_procfile_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(NothingToRun) as refused:
        detect(tmp_path, {"Procfile": text})
    assert str(refused.value) == message


def test_without_web_the_environments_command_runs(tmp_path: Path) -> None:
    found = detect(tmp_path, {"Procfile": "worker: x", "index.html": ""}, command=("node", "x.js", "$PORT"))
    assert found == Plan("command", ["node", "x.js", "$PORT"])


@pytest.mark.parametrize(
    ("name", "source", "requirements", "line", "install"),
    [
        ("main.py", FASTAPI, "fastapi", "uvicorn main:app", ["uvicorn"]),
        ("main.py", FASTAPI, "fastapi\nuvicorn[standard]>=0.30 # fast", "uvicorn main:app", []),
        ("app.py", FLASK, "Flask==3", "gunicorn app:app", ["gunicorn"]),
        ("app.py", "async def app(scope, receive, send): ...", "", "uvicorn app:app", ["uvicorn"]),
        ("wsgi.py", "def application(environ, start_response): ...", "", "gunicorn wsgi:application", ["gunicorn"]),
        (
            "shop/asgi.py",
            "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()",
            "django",
            "uvicorn shop.asgi:application",
            ["uvicorn"],
        ),
        (
            "shop/wsgi.py",
            "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()",
            "django",
            "gunicorn shop.wsgi:application",
            ["gunicorn"],
        ),
        ("shop/__init__.py", FLASK, "flask", "gunicorn shop:app", ["gunicorn"]),
        ("main.py", "from shop import make\napp = make()", "starlette", "uvicorn main:app", ["uvicorn"]),
        ("main.py", "from shop.web import app", "Flask", "gunicorn main:app", ["gunicorn"]),
    ],
)  # fmt: skip
def test_python_applications(
    tmp_path: Path, name: str, source: str, requirements: str, line: str, install: list[str]
) -> None:
    found = detect(tmp_path, {name: source, "requirements.txt": requirements})
    server, target = line.split()
    options = '--host 127.0.0.1 --port "$PORT"' if server == "uvicorn" else '--bind "127.0.0.1:$PORT"'
    assert found == Plan(
        "python",
        shell(f"exec python -m {server} {target} {options}"),
        [*PIP, "-r", "requirements.txt", *install] if requirements else [*PIP, *install],
    )


def test_requirements_are_followed_into_included_files(tmp_path: Path) -> None:
    found = detect(
        tmp_path,
        {
            "main.py": FASTAPI,
            "requirements.txt": "-r requirements/base.txt\n-r requirements.txt\n-r ../../etc/passwd",
            "requirements/base.txt": "fastapi\nuvicorn",
        },
    )
    assert found.install == [*PIP, "-r", "requirements.txt"]


def test_pyproject_and_a_src_layout(tmp_path: Path) -> None:
    found = detect(
        tmp_path,
        {
            "src/shop/main.py": FASTAPI,
            "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\ndependencies = ["fastapi>=0.110"]',
        },
    )
    line = 'exec python -m uvicorn shop.main:app --host 127.0.0.1 --port "$PORT" --app-dir src'
    assert found == Plan("python", shell(line), [*PIP, "fastapi>=0.110", "uvicorn"])


def test_poetry_projects_install_themselves(tmp_path: Path) -> None:
    found = detect(
        tmp_path, {"main.py": FASTAPI, "pyproject.toml": "[tool.poetry.dependencies]\nfastapi = '*'"}
    )
    assert found.install == [*PIP, ".", "uvicorn"]


def test_node_and_static(tmp_path: Path) -> None:
    package = '{"scripts": {"start": "node server.js"}, "dependencies": {"express": "4"}}'
    assert detect(tmp_path / "a", {"package.json": package}) == Plan(
        "node", ["npm", "start"], ["npm", "install", "--omit=dev"]
    )
    locked = detect(tmp_path / "b", {"package.json": package, "package-lock.json": "{}"})
    assert locked.install == ["npm", "ci", "--omit=dev"]
    for folder in (".", "public", "dist", "site"):
        found = detect(tmp_path / f"c{folder}", {f"{folder}/index.html": "", "x": ""})
        assert found == Plan("static", ["python", "-m", "agent.static", folder])


def test_the_root_directory_is_where_it_looks(tmp_path: Path) -> None:
    files = {"web/Procfile": "web: one", "Procfile": "web: two", "website/x": ""}
    assert detect(tmp_path, files, root_directory="web/").command == shell("one")
    assert detect(tmp_path, files, root_directory="./web").command == shell("one")
    for root, message in (
        ("we", "The source has no folder 'we', which is the root directory."),
        ("../x", "The root directory '../x' is not inside the source."),
        ("/web", "The root directory '/web' is not inside the source."),
    ):
        with pytest.raises(NothingToRun) as refused:
            detect(tmp_path, files, root_directory=root)
        assert str(refused.value) == message


def test_nothing_to_run_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NothingToRun) as refused:
        detect(tmp_path, {"main.py": "print('hello')", "requirements.txt": "flask"})
    assert str(refused.value) == (
        "Nothing to run was found in the source. Looked for: a Procfile with a 'web:' line; the environment's "
        "command; an ASGI or WSGI application named app or application in main.py, app.py, asgi.py, wsgi.py, "
        "application.py, server.py, api.py, at the top or in a package; package.json with a start script; "
        "index.html in the root, public, dist, site."
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pyproject.toml", "x = ", "pyproject.toml is not valid TOML"),
        ("pyproject.toml", '[project]\ndependencies = ["--index-url=x"]', "is not a list of requirements"),
        ("package.json", "{", "package.json is not valid JSON"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(NothingToRun, match=message):
        detect(tmp_path, {name: text, "main.py": FASTAPI})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"app = 1", None),
        (b"app = []", None),
        (b"def app(): ...", None),
        (b"async def app(x): ...", None),
        (b"def f():\n    app = Flask()", None),
        (b"from flask import Flask\nif True:\n    app = Flask(__name__)", "wsgi"),
        (b"import falcon.asgi\napp = falcon.asgi.App()", "asgi"),
        (b"import falcon\napp = falcon.App()", "wsgi"),
        (b"from fastapi import FastAPI as F\napp: F = F()", "asgi"),
        (b"from pyramid.config import Configurator\nc = Configurator()\napp = c.make_wsgi_app()", "wsgi"),
        (b"import flask, fastapi\napp = make()", None),
        (b"app = (", None),
        (b"\0", None),
        (b"app = " + b"-" * 100_000 + b"1", None),
        (b"(" * 5000, None),
        (b"x = '\\d'\nfrom flask import Flask\napp = Flask()", "wsgi"),
    ],
)
def test_reading_an_application(source: bytes, expected: str | None) -> None:
    found = webapps.find(source, ())
    assert (found.protocol if found else None) == expected


@given(st.dictionaries(st.sampled_from(["Procfile", "requirements.txt", "pyproject.toml", "package.json", "main.py"]), st.text(max_size=60), min_size=1))  # fmt: skip
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_any_content_ends_in_a_plan_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]
) -> None:
    content = {name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}
    try:
        found = detect(tmp_path_factory.mktemp("s"), dict(content))
    except NothingToRun:
        return
    assert found.command
