"""Small programs that tests deploy."""

SERVER = """
import http.server, json, os, signal, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        broken = os.path.exists(os.path.join(os.environ["HOME"], "broken"))
        body = json.dumps({"pid": os.getpid(), "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        self.send_response(500 if broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
def stop(number, frame):
    print("stopped by", signal.Signals(number).name, flush=True)
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("serving", file=sys.stderr)
server.serve_forever()
"""

# Serves, has a child, and neither ends when asked to.
STUBBORN = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
    import http.server
    http.server.HTTPServer(
        ("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler
    ).serve_forever()
signal.pause()
"""

# Cannot start while there is a file `broken` in its home.
MOODY = (
    """
import os
if os.path.exists(os.path.join(os.environ["HOME"], "broken")):
    print("cannot go on: no configuration", flush=True)
    raise SystemExit(3)
"""
    + SERVER
)

# Answers /wait only once there is a file `go` in its home, and knows of no signals.
PATIENT = """
import http.server, os, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while self.path == "/wait" and not os.path.exists(os.path.join(os.environ["HOME"], "go")):
            time.sleep(0.01)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

# Burns CPU in children of other sessions while the file BURN is there: several, so that they get something
# of a busy machine, too.
BURNER = (
    """
import os, subprocess, sys, time
if len(sys.argv) == 1:
    for _ in range(4):
        subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
else:
    while True:
        time.sleep(0.1)
        until = time.monotonic() + 0.1
        while os.path.exists(os.environ["BURN"]) and time.monotonic() < until:
            pass
"""
    + SERVER
)

CRASHES = "print('cannot go on: no configuration'); raise SystemExit(3)"
SILENT = "import time; print('thinking'); time.sleep(600)"
MUTE = "import time; time.sleep(600)"  # for tests that write into the log themselves
HUNGRY = SERVER.replace('print("serving"', 'hoard = bytearray(os.urandom(1024)) * 200_000\nprint("serving"')
