"""The page that is served: to this machine alone, nothing else, and new when runs have changed."""

import http.client
import re
import threading
import time

import pytest

from bitjax.cli import compare
from bitjax.report.serve import PageServer, notice, reload_script
from bitjax.runs.lock import lock
from tests.browser import Browser, find_chromium
from tests.run_folders import write_run


@pytest.fixture
def served():
    """A server of a page that says what its state is."""
    now = ["first"]
    server = PageServer(lambda reload: f"<p>{now[0]}</p>\n{reload}", lambda: now[0])
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with server:
        yield server, now
        server.shutdown()


def ask(server, path=None, *, method="GET", hosts=("localhost",)):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, server.path if path is None else path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def test_nobody_but_this_machine_reaches_it(served):
    server, _ = served
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{16}/", server.address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "LOCALHOST:80", "[::1]:80"])
def test_the_loopbacks_names_are_answered_on_any_port(served, host):
    status, text, headers = ask(served[0], hosts=(host,))
    assert status == 200 and text.startswith("<p>first</p>")
    assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    "hosts",
    [("evil.example",), ("localhost.evil.example",), ("evil@localhost.example",), (), ("",),
     ("localhost", "evil.example"), ("[::1",), ("0.0.0.0",)],
)  # fmt: skip
def test_a_page_of_another_name_that_is_led_here_gets_nothing(served, hosts):
    status, text, _ = ask(served[0], hosts=hosts)
    assert status == 403 and "first" not in text


def test_nothing_but_the_page_and_its_version_is_served(served):
    server, _ = served
    below = [f"{server.path}{name}" for name in ("x", "?a", "../", "result.json")]
    for path in ("/", "/etc/passwd", "/../etc/passwd", "//", "*", server.path[:-1], *below):
        assert ask(server, path)[0] in (400, 404), path
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT"):
        assert ask(server, method=method)[0] == 501


def test_the_version_is_another_one_when_the_runs_are(served, monkeypatch):
    server, now = served
    monkeypatch.setattr("bitjax.report.serve._EVERY", 0.0)
    versions = [ask(server, f"{server.path}version")[1] for _ in range(2)]
    assert versions[0] == versions[1] and f'version = "{versions[0]}"' in ask(server)[1]
    now[0] = "second"
    later = ask(server, f"{server.path}version")[1]
    assert later != versions[0]
    assert "second" in ask(server)[1] and f'version = "{later}"' in ask(server)[1]


def test_one_look_at_the_runs_serves_all_who_ask_within_a_second():
    looks = []
    with PageServer(lambda reload: "", lambda: looks.append(0)) as server:
        for _ in range(5):
            server.now()
    assert len(looks) == 1


def test_an_error_on_the_way_is_one_line_and_the_server_goes_on(served, capfd, monkeypatch):
    server, now = served
    monkeypatch.setattr("bitjax.report.serve._EVERY", 0.0)
    now[0] = type("Bad", (), {"__repr__": lambda self: 1 / 0})()  # type: ignore[call-overload]  # it is made to fail
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server)
    assert capfd.readouterr().err == (
        "error: the page was not served (ZeroDivisionError: division by zero)\n"
    )
    now[0] = "third"
    assert "third" in ask(server)[1]


def test_a_notice_holds_its_text_as_text():
    text = notice("<b>", "<script>no</script>", reload_script("v"))
    assert "<script>no" not in text and text.count("<script>") == 1


def test_the_command_refuses_files_beside_it_and_a_port_that_is_taken(served, tmp_path):
    port = served[0].server_address[1]
    for words, said in (
        (["--watch", "--csv=x.csv"], "--watch serves the page and writes no file"),
        (["--watch", f"--port={port}"], rf"--port={port} cannot be had \(Address already in use\)"),
        (["--watch", "--port=70000"], r"must be an integer in \[0, 65535\]"),
    ):
        with pytest.raises(ValueError, match=said):
            compare.main([str(tmp_path), *words])


def test_the_page_of_the_command_shows_runs_as_they_finish(tmp_path, monkeypatch):
    monkeypatch.setattr("bitjax.report.serve._EVERY", 0.0)
    (tmp_path / "on").mkdir()
    (tmp_path / "on" / "config.json").write_text("{}")
    with lock(tmp_path / "on"), compare.page_server(compare.parse([str(tmp_path)])) as server:
        empty, before = server.now()
        assert "nothing to compare" in empty and "<script>" in empty
        run = write_run(tmp_path / "done")
        page, after = server.now()
        assert after != before and str(run) in page and '"reason":"is under way"' in page
        assert server.now() == (page, after)
        (run / "export").mkdir()
        (run / "export" / "export.json").write_text("{}")
        assert server.now()[1] != after


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_loads_the_page_again_and_keeps_what_was_typed_and_its_place(tmp_path):
    find_chromium()
    for seed in range(30):
        write_run(tmp_path / "runs" / f"run{seed}", seed=seed)
    server = compare.page_server(compare.parse([str(tmp_path / "runs")]))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def wait(browser, expression):
        until = time.monotonic() + 60
        while not browser.run(expression):
            assert time.monotonic() < until, browser.errors
            time.sleep(0.05)

    with server, Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=server.address)
        wait(browser, "document.getElementById('filter') !== null")
        browser.click("#filter")
        browser.type("lsq")
        browser.run("window.scrollTo(0, 400)")
        place = browser.run("window.scrollY")
        assert place > 0
        write_run(tmp_path / "runs" / "new", seed=77)
        wait(browser, "document.body?.textContent.includes('runs/new')")
        wait(browser, f"window.scrollY === {place}")
        assert browser.run("document.getElementById('filter').value") == "lsq"
        asked = {url.removeprefix(server.address) for url in browser.requests}
        assert asked == {"", "version"} and not browser.errors
        server.shutdown()
