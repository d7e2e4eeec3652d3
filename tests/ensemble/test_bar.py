"""The bar of a sweep says the speed and the time left in a terminal of 80 columns."""

import io

import rich.console
import rich.progress

from sgfbias.ensemble import bar


def test_nothing_is_cut_at_80_columns(monkeypatch):
    written = io.StringIO()
    console = rich.console.Console(file=written, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(rich.progress, "get_console", lambda: console)
    state = {"chunks": 2400, "chunks_done": 1200, "rate": 1234.0, "seconds_left": 97.0}
    with bar.shown(True) as show:
        show(state | {"diverged": 0, "failed": 0})
        show(state | {"diverged": 40, "failed": 0})
        show(state | {"rate": 0.0, "seconds_left": None, "diverged": 0, "failed": 0})
    last = written.getvalue()
    assert "0 runs/s, unknown time left" in last
    assert "…" not in last
    assert "failed" not in last
    assert bar.words(state | {"diverged": 40, "failed": 2}) == (
        "1,234 runs/s, 2 min left, 40 diverged, 2 failed"
    )
