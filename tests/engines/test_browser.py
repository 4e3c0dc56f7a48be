"""report.html in a real browser, at the width of a desk and of a phone, by day and by night."""

import re
import shutil
import subprocess

import pytest
from torchqat.reports.html import write_html

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed; make test-engines installs it as root")

# Widths of the page and of the window, what stands on the page, and its colours.
PROBE = """<script>addEventListener("load", () => {
  const style = getComputedStyle(document.body);
  document.title = [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll("svg").length,
    style.backgroundColor, style.color].join("|");
});</script>"""


@pytest.fixture
def page(tmp_path):
    import json

    from torchqat.files import write_json
    from torchqat.reports.report import Report, Variant

    variants = [
        Variant(f"v{bits}", f"INT{bits} by a method with a long name", bits + 0.25, 20.0, 10.0**-bits, 0.9, 10**6, "x")
        for bits in (2, 3, 4, 8)
    ]
    for variant in variants:
        variant.kl_shares, variant.kl_by_position = [1 / 36] * 36, [0.03, 0.02, 0.01]
        variant.histograms = {
            "weights": {"ends": [-4.0, 4.0], "before": [0.25] * 4, "after": [0.0, 0.5, 0.5, 0.0]},
            "scales": {"ends": [-2.0, 1.0], "after": [0.5, 0.5]},
        }
    report = Report({"perplexity": 20.0, "bytes": 8 * 10**6, "tokens": 9}, variants, True, decision=["Chosen: INT4."])
    report.sensitivity = {f"model.layers.{i}.{k}": {"4": 10.0**-i} for i in range(3) for k in ("mlp.up", "attn.q")}
    write_json(tmp_path / "run" / "report.json", report.to_json())
    lines = [{"step": s, "loss": 1 / s, "weight_bits": [8 if s < 50 else 4]} for s in range(1, 100)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_html(tmp_path / "run")
    path.write_text(path.read_text().replace("</head>", PROBE + "</head>"))
    return path


def browse(page, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("theme", ("light", "dark"))
@pytest.mark.parametrize("width", (1280, 500))
def test_it_is_readable(width, theme, page, tmp_path):
    options = [f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={'01'[theme == 'light']}"]
    title = re.search(r"<title>(.*?)</title>", browse(page, "--dump-dom", *options))[1]
    wide, window, drawn, paper, ink = title.split("|")
    assert int(wide) <= int(window), "the page must not scroll sideways; its tables and pictures do, within themselves"
    assert int(drawn) == 5
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (light[0] > 600 and light[1] < 200) if theme == "light" else (light[0] < 200 and light[1] > 600)
    shot = tmp_path / "shot.png"
    browse(page, f"--screenshot={shot}", *options)
    assert painted_share(shot) > 0.02


def painted_share(path):
    """Share of the picture that is not paper."""
    import matplotlib.image

    picture = matplotlib.image.imread(path)[..., :3]
    return float((abs(picture - picture[2, 2]) > 0.05).any(-1).mean())
