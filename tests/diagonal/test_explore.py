"""The explorer: its computations, the code that it offers to copy, the values that it
refuses, and the page itself in a browser.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import chromium
import jax
import numpy as np
import pytest

from sgfbias import cli
from sgfbias.diagonal.explore import figures, page, snippet
from sgfbias.diagonal.explore.compute import ExploreConfig, explore, notes, unit_ball

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
    assert "16 diverged" in page.summary(result)
    assert figures.png(result).startswith(b"\x89PNG")


@pytest.mark.slow
def test_seeds_at_the_edge_are_not_called_landed(shown):
    error = np.where(np.arange(16) < 3, np.nan, shown.runs.error)
    edge = dataclasses.replace(shown, runs=dataclasses.replace(shown.runs, error=error))
    assert notes(edge) == [
        "3 of 16 seeds could not be landed, being too close to the stability edge to say that "
        "they will settle."
    ]
    assert "13 of 16 seeds landed, 0 diverged" in page.summary(edge)


@pytest.mark.slow
def test_pictures_differ_where_the_config_does(shown):
    picture = figures.png(shown)
    assert picture.startswith(b"\x89PNG")
    assert figures.png(shown) == picture
    assert figures.png(dataclasses.replace(shown, effective_alpha=1e-3)) != picture
    assert "with noise" in page.summary(shown)


def test_the_unit_ball_goes_from_diamond_to_circle():
    x, y = unit_ball(10.0)
    np.testing.assert_allclose(np.hypot(x, y), 1, atol=1e-4)
    norms = [np.abs(unit_ball(alpha)).sum(axis=0).max() for alpha in (10.0, 0.3, 0.01, 1e-6)]
    assert norms[0] == pytest.approx(2**0.5, abs=1e-3)
    assert np.all(np.diff(norms) < 0)
    # The excess over a diamond falls as log 2 / (4 log 1/alpha).
    assert 1 < norms[-1] < 1.06

    def phi(b, a=0.3):
        return b * np.arcsinh(b / (2 * a**2)) - np.sqrt(b**2 + 4 * a**4)

    x, y = unit_ball(0.3)
    np.testing.assert_allclose(phi(x) + phi(y), phi(1.0) + phi(0.0), atol=1e-5)


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
    made = {}

    def slider(*, value, steps=None, start=None, stop=None, **rest):
        assert value in (steps or range(start, stop + 1))
        return value

    def dropdown(options, *, value, **rest):
        return options[value]

    made = page.controls(types.SimpleNamespace(slider=slider, dropdown=dropdown))
    assert page.config_of(made) == ExploreConfig()
    assert page.config_of(made | {"log_alpha": -1.25}).alpha == 0.0562
    for log_alpha in page.LOG_ALPHAS:
        page.config_of(made | {"log_alpha": log_alpha}).check()


def test_without_marimo_it_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "marimo" else find(name, *rest),
    )
    assert cli.main(["explore"]) == 2
    assert (
        capsys.readouterr().err
        == "sgfbias: the explorer needs marimo; install it with pip install 'sgfbias[explore]'\n"
    )


def test_a_port_that_is_taken_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name)
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
    assert figures.png(result).startswith(b"\x89PNG")
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
    command = [sys.executable, "-m", "sgfbias.cli", "explore", "--port", "0", "--no-browser"]
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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("marimo") is None,
    reason="marimo is not installed: pip install 'sgfbias[explore]'",
)
@pytest.mark.skipif(
    chromium.program() is None, reason="there is no Chromium to look at the page with"
)
@pytest.mark.skipif(
    not Path("/proc/self/net/tcp").exists(), reason="listening sockets are read from /proc"
)
def test_the_page_in_a_browser():
    image = "document.querySelector('img[alt^=\"alpha = \"]')"
    pixels = f"""(() => {{
        const i = {image}, c = document.createElement('canvas'); c.width = 200; c.height = 120;
        c.getContext('2d').drawImage(i, 0, 0, 200, 120); return c.toDataURL(); }})()"""
    drawn = f"{image}?.complete && {image}.naturalWidth > 500 &&"
    with served() as (process, port):
        # It listens on 127.0.0.1 and nowhere else.
        assert listening(process.pid) == {("0100007F", f"{port:04X}")}
        with chromium.open_page(f"http://127.0.0.1:{port}") as tab:
            tab.wait(f"{drawn} {image}.alt.startsWith('alpha = 0.01,')", seconds=300)
            first = tab.evaluate(pixels)
            tab.evaluate(
                "document.querySelector('marimo-slider').shadowRoot"
                ".querySelector('[role=slider]').focus()"
            )
            tab.press("ArrowRight", 39)
            tab.wait(f"{drawn} {image}.alt.startsWith('alpha = 0.0178,')", seconds=60)
            assert tab.evaluate(pixels) != first
            tab.wait(
                "document.body.innerText.includes('64 of 64 seeds landed, 0 diverged')", seconds=10
            )
            # The text of the box lies in nested shadow roots, line by line, beside a
            # button that copies it.
            deep = """(function all(root) {
                return [...root.querySelectorAll('*')]
                    .flatMap(e => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
                })(document)"""
            command = "sgfbias run diagonal --alpha 0.0178 --step-size 0.1"
            tab.wait(
                f"{deep}.some(e => e.matches('.cm-line') && e.textContent.startsWith('{command}'))",
                seconds=10,
            )
            assert tab.evaluate(
                f"{deep}.some(e => e.matches('button') && e.querySelector('.lucide-copy'))"
            )
            if shots := os.environ.get("SGFBIAS_SCREENSHOTS"):
                tab.screenshot(Path(shots) / "explore.png")
            # d = 20 with n = 40 gives a message, no picture and no traceback.
            tab.evaluate("""(() => {
                const s = [...document.querySelectorAll('marimo-dropdown')]
                    .map(m => m.shadowRoot.querySelector('select'))
                    .find(s => [...s.options].some(o => o.text == '200')
                        && [...s.options].some(o => o.text == '20'));
                s.focus();
                Object.getOwnPropertyDescriptor(HTMLSelectElement.prototype, 'value')
                    .set.call(s, [...s.options].find(o => o.text == '20').value);
                s.dispatchEvent(new Event('change', {bubbles: true})); })()""")
            said = (
                "[...document.querySelectorAll('marimo-callout-output')].map(e => "
                "e.shadowRoot.textContent).join(' ')"
            )
            tab.wait(f"{said}.includes('n must be below d = 20, but is 40')", seconds=60)
            assert tab.evaluate(image) is None
            assert "Traceback" not in tab.evaluate("document.body.innerText")
            assert tab.errors == []
