"""The explorer: its computations, the code that it offers to copy, the values that it
refuses, and the page itself in a browser, with a server and exported.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import chromium
import jax
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import cli
from sgfbias.cli import explore as explore_command
from sgfbias.diagonal.explore import app, snippet
from sgfbias.diagonal.explore.compute import batch_size, explore, notes
from sgfbias.diagonal.explore.config import ExploreConfig
from sgfbias.diagonal.explore.controls import config_of, controls, exported
from sgfbias.diagonal.explore.edges import edges
from sgfbias.diagonal.explore.picture import picture

SMALL = ExploreConfig(alpha=0.1, step_size=0.05, n=8, d=20, sparsity=2, seeds=16, steps=200)
NOISY = dataclasses.replace(SMALL, strength=0.5)


@pytest.fixture(scope="module")
def shown():
    return explore(NOISY)


def compiled(function):
    """The result of a call, and the number of programs that XLA compiled for it."""
    counted = []

    def listen(event, seconds, **rest):
        if event.endswith("backend_compile_duration"):
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return result, len(counted)


@pytest.mark.slow
def test_seeds_land_where_the_theorem_says(shown):
    runs = shown.runs
    assert runs.landed.all()
    assert notes(shown) == []
    np.testing.assert_allclose(shown.predicted, runs.beta, atol=1e-9)
    on_curve = np.exp(np.interp(runs.integral, shown.curve_integral, np.log(shown.curve_error)))
    np.testing.assert_allclose(runs.validation_error, on_curve, rtol=1e-3)
    np.testing.assert_allclose(shown.descent.validation_error[0], shown.curve_error[0], rtol=1e-8)
    assert runs.validation_error.max() < shown.descent.validation_error[0]
    assert runs.beta[0] @ runs.beta[0] > shown.l2 @ shown.l2
    assert shown.effective_alpha < 0.1
    # In weights the theorem can fail. It holds up to the solver's error, and it does
    # not hold with the alpha of the start.
    assert shown.gap < 0.02
    assert shown.gap_start > 4 * shown.gap


@pytest.mark.slow
def test_a_move_compiles_nothing(shown):
    moved = dataclasses.replace(NOISY, alpha=0.05, step_size=0.04, strength=0.7, problem_seed=3)
    result, count = compiled(lambda: explore(moved))
    assert count == 0
    assert result.runs.landed.all()
    assert np.abs(result.runs.beta - shown.runs.beta).max() > 0.1


@pytest.mark.slow
def test_the_seed_shown_has_the_middle_error(shown):
    errors = shown.runs.validation_error
    assert np.sum(errors < errors[shown.shown]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [3.0])
def test_diverged_seeds_are_counted_and_left_out(step_size, shown):
    result = explore(dataclasses.replace(SMALL, step_size=step_size))
    lost = result.runs.diverged.sum()
    assert lost == 16
    assert not result.runs.landed.any()
    assert f"All {lost} seeds diverged at gamma = {step_size:g}" in notes(result)[0]
    drawn = picture(result)
    assert "16 diverged" in " ".join(drawn["texts"])
    assert drawn["sgf"]["loss"] == []
    json.dumps(drawn, allow_nan=False)


@pytest.mark.slow
def test_seeds_at_the_edge_are_not_called_landed(shown):
    error = np.where(np.arange(16) < 3, np.nan, shown.runs.error)
    edge = dataclasses.replace(shown, runs=dataclasses.replace(shown.runs, error=error))
    assert notes(edge) == [
        "3 of 16 seeds could not be landed, being too close to the stability edge to say that "
        "they will settle."
    ]
    assert picture(edge)["texts"][0].startswith("13 of 16 seeds landed, 0 diverged")
    assert len(picture(edge)["seeds"]["error"]) == 13


@pytest.mark.slow
def test_sgd_itself_is_among_the_curves_and_close_to_its_flow(shown):
    """With a strength of 1/2 it has batches of 2; its own run here is the reference."""
    assert batch_size(NOISY) == 2
    drawn = picture(shown)
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=8, d=20, sparsity=2)
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=20)
    runs = sgf.simulate(
        sgf.StochasticGradientDescent(0.05, 2),
        network,
        problem,
        keys=sgf.seeds(0, 16),
        steps=200,
        record=sgf.Record(times=2),
    )
    end = np.median(runs["loss"][:, -1])
    assert drawn["sgd"]["loss"][1][-1] == pytest.approx(float(end), rel=1e-3)
    assert drawn["sgd"]["times"] == drawn["sgf"]["times"]
    ratio = np.log10(drawn["sgd"]["loss"][1][-1] / drawn["sgf"]["loss"][1][-1])
    assert abs(ratio) < 1
    assert drawn["sgd_missing"] == ""
    limit = np.median(sgf.land(runs).validation_error)
    assert drawn["sgd"]["landed"] == pytest.approx(float(limit), rel=1e-3)
    assert drawn["table"][1][0] == "SGD, its limit"


@pytest.mark.parametrize(
    ("strength", "noise", "batch"),
    [(1.0, "mean-loss", 1), (0.25, "mean-loss", 4), (0.75, "mean-loss", None),
     (2.0, "mean-loss", None), (0.1, "mean-loss", None), (1.0, "label", None),
     (1.0, "none", None)],
)  # fmt: skip
def test_sgd_is_drawn_where_a_batch_size_has_the_noise(strength, noise, batch):
    assert batch_size(dataclasses.replace(SMALL, strength=strength, noise=noise)) == batch


def test_the_slider_is_marked_at_the_edges_of_stability():
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=8, d=20, sparsity=2)
    least = np.asarray(sgf.minimum_l1(problem))
    found = edges(SMALL, problem, 1, least)
    sgd, flow = sgf.StochasticGradientDescent(1.0), sgf.StochasticGradientFlow(1.0)
    assert found["SGD"] == pytest.approx(sgf.stability_edge(problem, sgd).step_size)
    assert found["SGD's flow"] == pytest.approx(sgf.stability_edge(problem, flow).step_size)
    # With half the variance of the noise, and steps as large as before.
    half = edges(dataclasses.replace(SMALL, strength=0.5), problem, 2, least)
    assert found["SGD's flow"] < half["SGD's flow"] < 2 * found["SGD's flow"]
    assert half["SGD"] > found["SGD"]
    assert edges(dataclasses.replace(SMALL, noise="none"), problem, None, least) == {}
    assert list(edges(dataclasses.replace(SMALL, noise="label"), problem, None, least)) == [
        "SGD's flow"
    ]


def stored():
    return json.loads(app._part(app.FIRST))


def test_the_stored_picture_is_of_the_first_values_of_the_controls():
    assert stored()["config"] == dataclasses.asdict(ExploreConfig())
    assert stored()["sgd"] is not None


@pytest.mark.slow
def test_the_stored_picture_is_the_computed_one():
    """If the numbers change: python -m sgfbias.diagonal.explore.app."""
    there, computed = stored(), app.answer({})
    for name in ("descent", "sgd", "sgf"):
        for curve in ("loss", "validation"):
            np.testing.assert_allclose(
                there[name][curve][1], computed[name][curve][1], rtol=0.01, err_msg=name
            )
    for name in ("coordinates", "curve", "seeds"):
        for key, values in there[name].items():
            np.testing.assert_allclose(values, computed[name][key], rtol=0.01, atol=1e-3)
    assert there["effective_alpha"] == pytest.approx(computed["effective_alpha"], rel=0.01)
    assert (there["shell"], there["python"]) == (computed["shell"], computed["python"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be between 1e-06 and 10, but is 0.0"),
        ({"alpha": float("nan")}, "alpha must be between"),
        ({"step_size": -0.1}, "step_size must be positive and finite, but is -0.1"),
        ({"strength": float("inf")}, "strength must be positive"),
        ({"noise": "pink"}, "noise must be mean-loss, label or none, but is 'pink'"),
        ({"n": 20}, "n must be below d = 20, but is 20"),
        ({"sparsity": 21}, "sparsity must be at most d = 20, but is 21"),
        ({"seeds": 1}, "seeds must be at least 2, but is 1"),
        ({"label_steps": 0}, "label_steps must be at least 4"),
    ],
)
def test_senseless_values_are_refused(change, message):
    config = object.__new__(ExploreConfig)  # without the type checks of the tests
    for field in dataclasses.fields(ExploreConfig):
        object.__setattr__(config, field.name, (dataclasses.asdict(SMALL) | change)[field.name])
    with pytest.raises(ValueError, match=re.escape(message)):
        config.check()


def run_text(config):
    names = {}
    exec(snippet.python_text(config), names)
    return names


@pytest.mark.slow
def test_the_python_text_makes_what_is_shown(shown, capsys):
    names = run_text(NOISY)
    np.testing.assert_allclose(names["landed"].beta, shown.runs.beta, atol=1e-9)
    np.testing.assert_allclose(names["predicted"], shown.predicted, atol=1e-9)
    np.testing.assert_allclose(names["integral"], shown.runs.integral, rtol=1e-9)
    assert f"gradient flow {shown.descent.validation_error[0]:.3g}" in capsys.readouterr().out


def test_the_command_line_is_that_of_the_config():
    for config in (SMALL, NOISY, dataclasses.replace(SMALL, noise="none")):
        line = snippet.command_line(config).splitlines()[-1]
        command = cli.parse(shlex.split(line)[1:])
        assert command.study.name == "diagonal"
        for field in ("alpha", "step_size", "n", "d", "sparsity", "problem_seed", "seeds"):
            assert getattr(command.config, field) == getattr(config, field)
    assert "strength of 0.5" in snippet.command_line(NOISY)
    noisy = dataclasses.replace(SMALL, noise="label", strength=2.0, label_steps=100)
    command = cli.parse(shlex.split(snippet.command_line(noisy).splitlines()[-1])[1:])
    config = command.config
    assert (command.study.name, config.budget, config.alpha, config.d) == (
        "noise-schedule",
        2.0**2 * 100 * 0.05,
        0.1,
        20,
    )


def test_the_controls_start_at_the_defaults_and_reach_sane_configs():
    for made in (controls(), exported()):
        assert config_of({c["name"]: c["value"] for c in made}) == ExploreConfig()
        for control in made:
            assert control["value"] in control["values"]
            assert len(control["texts"]) == len(control["values"])
            if control["name"] in ("n", "d"):
                continue  # which are checked together
            for value in control["values"]:
                config_of({control["name"]: value}).check()
    with pytest.raises(ValueError, match="there is no control 'dt'"):
        config_of({"dt": 1})
    with pytest.raises(ValueError, match="alpha must be one of .* but is 3"):
        config_of({"alpha": 3})


def test_a_port_that_is_taken_is_refused(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["explore", "--port", str(port), "--no-browser"]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
    assert cli.main(["explore", "--port", "70000"]) == 2
    assert "--port must be between 0 and 65535, but is 70000" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["label", "none"])
def test_other_noises_and_their_python_text(noise):
    config = dataclasses.replace(SMALL, noise=noise, strength=0.3, label_steps=50)
    result, names = explore(config), run_text(config)
    assert result.runs.landed.all()
    predicted = np.atleast_2d(names["predicted"])
    np.testing.assert_allclose(predicted, result.predicted, atol=1e-8)
    np.testing.assert_allclose(result.predicted, result.runs.beta, atol=1e-8)
    drawn = picture(result)
    assert drawn["sgd"] is None
    assert ("SGD itself is not drawn" in drawn["sgd_missing"]) == (noise == "label")
    assert result.gap < 0.02
    if noise == "label":
        assert result.runs.integral.min() > 0.3**2 * 50 * 0.05
        assert result.runs.times[-1] == pytest.approx(250 * 0.05)
        assert np.all(np.diff(result.runs.times) > 0)
        assert result.gap_start > 3 * result.gap


@contextlib.contextmanager
def served():
    """`sgfbias explore` as a process of its own: yields the process and its port.
    Ctrl-C at the end must end it cleanly.
    """
    # Jobs in the background ignore Ctrl-C, and so would what they start.
    begin = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from sgfbias.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", begin, "explore", "--port", "0", "--no-browser"]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert "the explorer has stopped" in out
        assert "Traceback" not in err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def listening(pid):
    """The pairs `(address, port)`, in hexadecimal, of the sockets on which a process
    listens, read from /proc.
    """
    held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {
        tuple(row[1].split(":")) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held
    }


def posted(port, values, **headers):
    """The status and the text of the answer to a question to the server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/picture", body=json.dumps(values), headers=headers)
    with contextlib.closing(connection):
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


browser = pytest.mark.skipif(chromium.program() is None, reason="there is no Chromium to look with")


def phone(tab, *, width=420, dark=True):
    """Show the tab as on a phone."""
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=True,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.call("Emulation.setEmulatedMedia", features=[scheme])
    tab.wait(f"innerWidth == {width}", seconds=10)


def looks_right(tab):
    """Nothing is wider than the window, and no two parts of the page overlap."""
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (
        tab.evaluate("""(() => {
        const parts = [...document.querySelectorAll('header, label, #state, figure, #table')]
            .filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect());
        return parts.flatMap((a, i) => parts.slice(i + 1).filter(b =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)).length; })()""")
        == 0
    )


def drawn_curves(tab):
    return tab.evaluate(
        "[...document.querySelectorAll('#loss .legend span')].map(e => e.textContent)"
    )


@browser
def test_the_page_opens_at_once_with_controls_and_a_stored_picture_and_says_so(tmp_path):
    """The file of the live page without its server: nothing is computed."""
    (tmp_path / "page.html").write_text(app.live(), encoding="utf-8")
    with chromium.open_page("about:blank", size=(1280, 1000)) as tab:
        tab.call("Page.navigate", url=(tmp_path / "page.html").as_uri())
        began = time.monotonic()
        tab.wait("document.querySelectorAll('label').length >= 11", seconds=2)
        tab.wait("document.querySelectorAll('figure path').length > 50", seconds=2)
        assert time.monotonic() - began < 2
        assert drawn_curves(tab) == ["gradient flow", "SGD", "SGD's flow"]
        said = tab.wait("document.getElementById('state').textContent", seconds=2)
        assert said.startswith(("Stored picture", "The server does not answer"))
        looks_right(tab)
        size = "parseFloat(getComputedStyle(document.querySelector('svg text')).fontSize)"
        small = tab.evaluate(size)
        tab.evaluate("document.getElementById('large').click()")
        assert tab.evaluate(size) > 1.4 * small
        looks_right(tab)
        for large in (True, False):
            phone(tab)
            tab.evaluate("document.querySelector('#controls details').open = true")
            looks_right(tab)
            if large:
                tab.evaluate("document.getElementById('large').click()")
        colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64


@browser
def test_an_exported_page_needs_no_server_and_shows_what_its_sliders_say(tmp_path, monkeypatch):
    """With one picture of the explorer for all places of the grid, told apart by its
    words.
    """
    asked = []

    def instead(values):
        asked.append(values)
        config = stored()["config"] | values
        return stored() | {"config": config, "texts": [json.dumps(values)]}

    monkeypatch.setattr(app, "answer", instead)
    target = tmp_path / "folder" / "page.html"
    assert cli.main(["explore", "--export", str(target)]) == 0
    assert [f.name for f in target.parent.iterdir()] == ["page.html"]
    text = target.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert len(asked) == 48
    with chromium.open_page(target.as_uri(), size=(1280, 1000)) as tab:
        texts = "document.getElementById('texts')?.innerText"
        tab.wait(f'{texts}.includes(\'"alpha": 0.01, "step_size": 0.1,\')', seconds=20)
        tab.evaluate("document.getElementById('control-alpha').focus()")
        tab.press("ArrowRight", 39)
        tab.wait(f'{texts}.includes(\'"alpha": 0.0316, "step_size": 0.1,\')', seconds=5)
        phone(tab)
        looks_right(tab)
        assert tab.errors == []


def test_the_server_answers_this_machine_and_its_own_page_only(monkeypatch):
    monkeypatch.setattr(app, "answer", lambda values: {"values": values})
    with explore_command._listen(0) as listener:
        server = explore_command._server(listener, app, verbose=False)
        port = listener.getsockname()[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert posted(port, {"n": 3}) == (200, '{"values": {"n": 3}}')
            own = {"Origin": f"http://127.0.0.1:{port}"}
            assert posted(port, {}, **own)[0] == 200
            assert posted(port, {}, Origin="http://elsewhere.org")[0] == 403
            assert posted(port, {}, Host=f"elsewhere.org:{port}")[0] == 403
            status, text = posted(port, [1])
            assert (status, "must be an object" in json.loads(text)["error"]) == (200, True)
            monkeypatch.setattr(app, "answer", lambda values: config_of(values))
            assert "there is no control" in posted(port, {"spam": 1})[1]
        finally:
            server.shutdown()


@pytest.mark.slow
@browser
@pytest.mark.skipif(
    not Path("/proc/self/net/tcp").exists(), reason="listening sockets are read from /proc"
)
def test_the_page_in_a_browser():
    state = "document.getElementById('state').textContent"
    text = "document.body.innerText"
    path = "document.querySelector('#loss > svg .s-line').getAttribute('d')"
    with served() as (process, port):
        # It listens on 127.0.0.1 and nowhere else.
        assert listening(process.pid) == {("0100007F", f"{port:04X}")}
        with chromium.open_page(f"http://127.0.0.1:{port}") as tab:
            tab.wait(f"{state}.startsWith('Stored picture')", seconds=20)
            tab.wait(f"{state}.startsWith('Computed on this machine')", seconds=300)
            first = tab.evaluate(path)
            tab.evaluate("document.getElementById('control-alpha').focus()")
            tab.press("ArrowRight", 39)
            tab.wait(f"{text}.includes('from 0.0178.')", seconds=60)
            assert tab.evaluate(path) != first
            assert "64 of 64 seeds landed, 0 diverged" in tab.evaluate(text)
            shell = "document.getElementById('shell').textContent"
            assert "sgfbias run diagonal --alpha 0.0178 --step-size 0.1" in tab.evaluate(shell)
            if shots := os.environ.get("SGFBIAS_SCREENSHOTS"):
                tab.screenshot(Path(shots) / "explore.png")
            # d = 20 with n = 40 gives a message, and the page goes on.
            tab.evaluate("""(() => { const d = document.getElementById('control-d');
                d.value = 0; d.dispatchEvent(new Event('change')); })()""")
            tab.wait(f"{state}.includes('n must be below d = 20, but is 40')", seconds=60)
            assert tab.errors == []
