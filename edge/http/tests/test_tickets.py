"""TLS sessions that another process resumes, and the file that their key is shared by."""

import multiprocessing
import os
import socket
import ssl
import stat
import time

import pytest

from edge.http.tests.rig import PATIENCE, certificate
from edge.http.tickets import LIFETIME_SECONDS, TicketKeys
from edge.http.tls import Certificates


@pytest.fixture
def listen(rig):
    """Start a listener as a process of its own would; return the connection that a session of it begins."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE

    def start(keys):
        issued = certificate("shop.test", 1)
        context = Certificates(lambda name: issued, "shop.test").listener_context()
        if keys is not None:
            rig.loop.call(lambda: keys.keep(context))
        server = rig.serve(lambda request: request.respond(200, b"", b"ok"), tls=context)

        def connect(version, session=None):
            client.minimum_version = client.maximum_version = version
            with (
                socket.create_connection(("127.0.0.1", rig.ports[server]), PATIENCE) as plain,
                client.wrap_socket(plain, server_hostname="shop.test", session=session) as secured,
            ):
                secured.sendall(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
                assert secured.recv(1024).startswith(b"HTTP/1.1 200 ")
                return secured.session, secured.session_reused

        return connect

    return start


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_goes_on_at_another_process(listen, tmp_path, version):
    first, second, stranger = listen(TicketKeys(tmp_path)), listen(TicketKeys(tmp_path)), listen(None)
    session, reused = first(version)
    assert not reused
    assert first(version, session)[1]
    assert second(version, session)[1]
    assert not stranger(version, session)[1]


def test_a_session_does_not_outlive_its_key(listen, tmp_path, monkeypatch):
    connect = listen(TicketKeys(tmp_path))
    session, _ = connect(ssl.TLSVersion.TLSv1_3)
    later = time.time() + LIFETIME_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    after = listen(TicketKeys(tmp_path))
    assert not after(ssl.TLSVersion.TLSv1_3, session)[1]


def test_the_key_changes_twice_a_day_and_earlier_ones_are_forgotten(tmp_path):
    keys = TicketKeys(tmp_path)
    first = keys.at(0)
    assert first == keys.at(LIFETIME_SECONDS - 1) == TicketKeys(tmp_path).at(1)
    second = keys.at(LIFETIME_SECONDS)
    assert second != first
    assert os.listdir(tmp_path) == ["tickets-1"]
    assert len(second) == 80


def test_the_key_is_nobody_elses(tmp_path):
    TicketKeys(tmp_path / "new").at(0)
    assert stat.S_IMODE((tmp_path / "new" / "tickets-0").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 81])
def test_a_file_that_is_no_key_is_replaced(tmp_path, content):
    (tmp_path / "tickets-0").write_bytes(content)
    assert len(TicketKeys(tmp_path).at(0)) == 80
    assert TicketKeys(tmp_path).at(0) == TicketKeys(tmp_path).at(1)


def _key_of(folder):
    return TicketKeys(folder).at(0)


def test_processes_that_begin_at_once_have_one_key(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as processes:
        assert len(set(processes.map(_key_of, [tmp_path] * 16))) == 1


def test_a_folder_that_cannot_be_used_leaves_the_listener_as_it_was(listen, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    connect = listen(TicketKeys(tmp_path / "file" / "folder"))
    session, _ = connect(ssl.TLSVersion.TLSv1_3)
    assert connect(ssl.TLSVersion.TLSv1_3, session)[1]
    assert [record.message for record in caplog.records] == ["the key of TLS sessions cannot be shared"]
