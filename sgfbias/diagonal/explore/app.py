"""The page of the explorer, a marimo notebook in app mode: `sgfbias explore`."""

import marimo

app = marimo.App(width="full", app_title="sgfbias explorer")


@app.cell(hide_code=True)
def _():
    import marimo as mo

    from sgfbias.diagonal.explore import figures, page, snippet
    from sgfbias.diagonal.explore.compute import explore, notes

    return explore, figures, mo, notes, page, snippet


@app.cell(hide_code=True)
def _(mo, page):
    controls = mo.ui.dictionary(page.controls(mo.ui))
    return (controls,)


@app.cell(hide_code=True)
def _(controls, explore, figures, mo, notes, page):
    explored, picture = None, None
    config = page.config_of(controls.value)
    with mo.status.spinner(
        title="Computing",
        subtitle="The first picture for each n, d and number of seeds is also compiled, which "
        "takes half a minute.",
    ):
        try:
            explored = explore(config)
            picture = figures.png(explored)
            troubles = notes(explored)
        except ValueError as error:
            troubles = [str(error)]
    return config, explored, picture, troubles


@app.cell(hide_code=True)
def _(config, controls, explored, mo, page, picture, snippet, troubles):
    _rows = [mo.md("## sgfbias explorer"), *controls.elements.values()]
    _left = mo.vstack(_rows, gap=0.4)
    _right = [mo.callout(mo.md(text), kind="warn" if picture else "danger") for text in troubles]
    if picture:
        _right += [
            mo.image(picture, alt=page.words(explored), width="100%"),
            mo.md(page.summary(explored)),
        ]
        _box = {
            "Command line": mo.ui.code_editor(
                snippet.command_line(config), language="shell", disabled=True, min_height=60
            ),
            "Python": mo.ui.code_editor(
                snippet.python_text(config), language="python", disabled=True, min_height=60
            ),
        }
        _right.append(mo.ui.tabs(_box))
    mo.hstack([_left, mo.vstack(_right)], widths=[1, 5], gap=2, align="start")
    return


if __name__ == "__main__":
    app.run()
