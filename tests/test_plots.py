"""Pictures hold the curves they promise."""

import ast

import numpy as np
import pytest
from PIL import Image

from d2v.training.curves import curves_figure, plot_curves, plot_spectrum, spectrum_figure

PROBES = [{"step": s, "probe_student_knn": 0.2 + s / 1000, "probe_teacher_knn": 0.2} for s in (0, 50, 100)]
CHECKS = [
    {
        "step": s,
        "student_rank": 10.0 + s,
        "teacher_rank": 9.0,
        "local_rank": 8.0,
        "student_knn": 0.4,
        "teacher_knn": 0.3,
    }
    for s in (0, 50, 100)
]
STEPS = [
    {
        "step": s,
        "loss": 1 / s,
        "target_std": 0.7,
        "prediction_std": 0.1,
        "grad_norm": 1.0,
        "lr": 1e-3 * s,
        "ema_decay": 0.999,
    }
    for s in range(1, 101)
]
HISTORY = sorted(CHECKS + PROBES + STEPS, key=lambda r: r["step"])


def panels(history) -> dict:
    return {axes.get_title(): axes for axes in curves_figure(history).axes}


def test_every_metric_is_drawn_over_its_steps():
    drawn = panels(HISTORY)
    assert len(drawn) == 8
    assert all(axes.get_xlabel() == "step" and axes.get_ylabel() for axes in drawn.values())
    (loss,) = drawn["Loss (no progress signal by itself)"].lines
    np.testing.assert_allclose(loss.get_xydata(), [(r["step"], r["loss"]) for r in STEPS])
    ranks = {line.get_label(): line for line in drawn["Effective rank of pooled features"].lines}
    assert set(ranks) == {"student", "teacher", "local", "student at init"}
    assert list(ranks["student"].get_xdata()) == [0, 50, 100]
    assert list(ranks["student at init"].get_ydata()) == [10, 10]
    probe = {line.get_label(): line for line in drawn["k-NN on run.probe"].lines}
    assert set(probe) == {"student", "teacher", "student at init"} and list(
        probe["student"].get_ydata()
    ) == pytest.approx([20, 25, 30])
    assert max(drawn["k-NN of pooled features"].lines[0].get_ydata()) == pytest.approx(40)  # percent


def test_metrics_that_a_run_does_not_have_take_no_room():
    assert list(panels([{"step": 1, "lr": 0.1}, {"step": 2, "lr": 0.2, "loss": float("nan")}])) == ["Learning rate"]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to plot: 1 records"):
        curves_figure([{"step": 1, "time": 3.0}])
    with pytest.raises(ValueError, match="no spectrum"):
        spectrum_figure({}, "")
    with pytest.raises(ValueError, match="'flat' has no positive value"):
        spectrum_figure({"flat": [0.0, 0.0]}, "")


def test_spectrum_is_log10_and_ends_at_zeros():
    (axes,) = spectrum_figure({"student": [100.0, 10.0, 1.0, 0.0], "teacher": [1.0]}, "spectrum").axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(1, 2), (2, 1), (3, 0)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["student", "teacher"]
    assert axes.get_title() == "spectrum" and "log10" in axes.get_ylabel()


@pytest.mark.parametrize("kind", ["curves", "spectrum"])
def test_files_are_pictures_with_something_on_them(kind, tmp_path):
    path = tmp_path / f"{kind}.png"
    if kind == "curves":
        plot_curves(HISTORY, path, "a run")
    else:
        plot_spectrum({"student": np.geomspace(1, 1e-6, 32)}, path)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 400
        grey = np.asarray(image.convert("L"))
    assert (grey == 255).mean() > 0.5 and (grey < 200).mean() > 0.005  # ink on white paper


@pytest.mark.parametrize("module", ["training/curves.py", "pictures.py"])
def test_importing_the_module_does_not_import_matplotlib(root, module):
    body = ast.parse((root / "d2v" / module).read_text("utf-8")).body
    imported = [
        node for node in body if isinstance(node, ast.Import | ast.ImportFrom)
    ]  # what lies in a function or an if is not run
    assert imported and not any("matplotlib" in ast.unparse(node) for node in imported)
