import matplotlib.figure
import numpy as np
import pytest
import torch
from contract import assert_close
from PIL import Image
from strategies import generator

from wsss_blocks.viz import class_score_figure

NAMES = ["horse", "person", "sky", "sea", "sand"]


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved."""
    found = []
    real = matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **kwargs):
        found.append(figure)
        return real(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return found


def problem(images=40, classes=5):
    scores = torch.rand(images, classes, generator=generator(0))
    labels = (torch.rand(images, classes, generator=generator(1)) < 0.3).float()
    return scores, labels


def bars(axes):
    return [patch.get_data() for patch in axes.patches if hasattr(patch, "get_data")]


def test_counts_without_labels(drawn, tmp_path):
    scores, _ = problem()
    class_score_figure(scores, names=NAMES, path=tmp_path / "a.png", bins=6)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == NAMES
    for k, axes in enumerate(panels):
        (bar,) = bars(axes)
        wanted, edges = np.histogram(
            scores[:, k].numpy(), bins=6, range=(float(scores.min()), float(scores.max()))
        )
        assert_close(torch.tensor(bar.values), wanted.tolist())
        assert_close(torch.tensor(bar.edges), edges.tolist(), dtype=torch.float32)
        assert axes.get_xlim() == panels[0].get_xlim()


def test_present_and_absent_apart(drawn, tmp_path):
    scores, labels = problem()
    labels[:, 3] = 0
    thresholds = torch.linspace(0.2, 0.6, 40)
    class_score_figure(scores, labels, names=NAMES, path=tmp_path / "a.png", thresholds=thresholds)
    for k, axes in enumerate(axes for axes in drawn[0].axes if axes.get_visible()):
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        number = int(labels[:, k].sum())
        wanted = [f"absent ({40 - number})", *([f"present ({number})"] if number else [])]
        assert texts == wanted
        for bar, chosen in zip(bars(axes), (labels[:, k] == 0, labels[:, k] > 0), strict=False):
            assert sum(bar.values) == pytest.approx(1)
            mean = (bar.values * (bar.edges[1:] + bar.edges[:-1]) / 2).sum()
            assert mean == pytest.approx(float(scores[chosen, k].mean()), abs=0.03)
        (band,) = [patch for patch in axes.patches if not hasattr(patch, "get_data")]
        assert band.get_x() == pytest.approx(0.3)
        assert band.get_x() + band.get_width() == pytest.approx(0.5)


def test_degenerate(tmp_path):
    class_score_figure(torch.zeros(1, 1), names=["a"], path=tmp_path / "a.png")
    class_score_figure(
        torch.full((1, 2), 0.5, dtype=torch.float16), torch.ones(1, 2), names=["a", "b"],
        path=tmp_path / "b.png", thresholds=torch.tensor([0.5]), bins=1,
    )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 2


def test_errors(tmp_path):
    scores, labels = problem()
    path = tmp_path / "a.png"
    for arguments, options, error, message in (
        ((scores[0],), {}, ValueError, r"scores must have shape \(N, C\) with C=5"),
        ((scores.long(),), {}, TypeError, "scores must be a floating-point tensor"),
        ((scores / 0,), {}, ValueError, "scores must be finite"),
        ((scores[:0],), {}, ValueError, "scores must have shape"),
        ((scores, labels[:, 1:]), {}, ValueError, r"labels must have shape \(B, K\)"),
        ((scores, labels + 1), {}, ValueError, "labels must be multi-hot"),
        ((scores,), {"names": ["a", "b", "c", "d", 5]}, TypeError, "names must hold strings"),
        ((scores,), {"names": NAMES[1:]}, ValueError, "scores must have shape .* C=4"),
        ((scores,), {"thresholds": scores}, ValueError, r"thresholds must have shape \(N\)|\(N,\)"),
        ((scores,), {"bins": 0}, ValueError, "bins must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            class_score_figure(*arguments, **({"names": NAMES, "path": path} | options))
    assert not path.exists()
