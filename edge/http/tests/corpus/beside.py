"""nginx and haproxy as plain proxies, on ports and in folders of their own, to play the corpus against."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from unkey.ports import choose

_PATIENCE = 20.0
_NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream app {{ server {app}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_ignore_client_abort on;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
    }}
  }}
}}
"""
_HAPROXY = """
defaults
  mode http
  timeout client 20s
  timeout server 20s
  timeout connect 5s
frontend here
  bind 127.0.0.1:{port}
  default_backend app
backend app
  server app {app}
"""


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError(f"{name} is not installed; scripts/test-services installs it")
    return path


@contextlib.contextmanager
def running(name: str, folder: Path, app: str) -> Iterator[int]:
    """Run a proxy in front of an upstream, and yield its port.

    Args:
        name: nginx or haproxy.
        app: `host:port` of the upstream.
    """
    port = choose("127.0.0.1", [name])[name]
    configuration = folder / f"{name}.conf"
    user = "user root;" if os.getuid() == 0 else ""
    template = _NGINX if name == "nginx" else _HAPROXY
    configuration.write_text(template.format(folder=folder, port=port, app=app, user=user))
    command = [_program(name), *(["-c"] if name == "nginx" else ["-db", "-f"]), str(configuration)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((folder / f"{name}.log").read_text()) from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(_PATIENCE)
