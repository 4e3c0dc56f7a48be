"""Pictures of a report: what is marked, sorted and labelled in them."""

import json
import math

import pytest
from torchqat.reports.drawing import scale_of
from torchqat.reports.heat_map import layer_grid, stride
from torchqat.reports.plots import pareto, pictures
from torchqat.reports.report import Report, Variant


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(8, 0.1), (4, 1.0), (4, 2.0), (5, 3.0)], [1, 0]),
        ([(1, 1)], [0]),
        ([(1, 1), (2, 1), (3, 0.5)], [0, 2]),
        ([], []),
    ],
)
def test_the_front_is_what_none_beats(points, front):
    assert pareto(points) == front


def test_layers_are_sorted_by_kind_and_block():
    found = layer_grid({"model.layers.11.mlp.up_proj": 1.0, "head": 2.0, "encoder.layer.0.output.dense": 3.0})
    assert found == {("mlp.up_proj", 11): 1.0, ("head", 0): 2.0, ("output.dense", 0): 3.0}


def test_rows_of_blocks_with_layers_of_one_kind_stay_apart():
    values = {f"{side}.layers.{i}.fc": float(i) for side in ("encoder", "decoder") for i in range(2)}
    found = layer_grid({**values, "decoder.layers.0.attend": 5.0})
    assert found[("encoder.layers.*.fc", 1)] == found[("decoder.layers.*.fc", 1)] == 1.0 and found[("attend", 0)] == 5.0
    assert len(found) == 5


@pytest.mark.parametrize("count", (1, 15, 16, 17, 30, 80, 161, 5000))
def test_labels_are_thinned_to_what_has_room(count):
    step = stride(count, 16)
    assert -(-count // step) <= 16 and str(step)[0] in "125" and (count > 16 or step == 1)


@pytest.mark.parametrize("blocks", (30, 80))
def test_labels_of_the_heat_map_stand_clear(blocks):
    """Measured by matplotlib, where the picture is drawn: none of the numbers touches the next, none of the names either."""
    from torchqat.reports import heat_map

    boxes = {}

    def measured(drawn, form):
        axes, renderer = drawn.axes[0], drawn.canvas.get_renderer()
        drawn.draw_without_rendering()
        for name, labels in (("x", axes.get_xticklabels()), ("y", axes.get_yticklabels())):
            boxes[name] = [label.get_window_extent(renderer) for label in labels]
        return b""

    kinds = [f"mlp.experts.{i}.down_proj" for i in range(60)]
    values = {f"model.layers.{block}.{kind}": 1.0 for block in range(blocks) for kind in kinds}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heat_map, "rendered", measured)
        heat_map.layers_picture(Report(sensitivity={name: {"4": value} for name, value in values.items()}), "svg")
    across, down = boxes["x"], sorted(boxes["y"], key=lambda box: box.y0)
    assert len(across) > 7 and all(a.x1 + 2 < b.x0 for a, b in zip(across, across[1:], strict=False))
    assert len(down) > 7 and all(a.y1 < b.y0 for a, b in zip(down, down[1:], strict=False))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 0.1, None, math.inf], "log"),
        ([0.0, 1.0], "log"),  # zeros are drawn at the bottom
        ([0.0, 0.0], "linear"),
        ([1.0, -1.0], "linear"),  # of which a logarithm would leave one out
        ([None, math.nan], "linear"),
        ([], "linear"),
    ],
)
def test_logarithms_are_of_what_has_some(values, scale):
    assert scale_of(values) == scale


@pytest.mark.drawn
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", ([0.0, 0.0], [None, None], [-2.0, -1.0], [0.0], [3.0, 2.0]))
@pytest.mark.parametrize("kl", (0.0, 0.1, math.inf, None))
def test_numbers_without_logarithms_are_drawn_without_a_warning(tmp_path, losses, kl):
    lines = [{"step": step, "loss": loss, "weight_bits": [4]} for step, loss in enumerate(losses)]
    lines[0]["validation_kl"] = kl
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    interval = {"kl": [kl, 0.0, 0.0]} if kl else {}
    variant = Variant("int4", "rtn", 4.5, 3.0, kl, 1.0, 100, "exports", intervals=interval)
    variant.kl_shares, variant.kl_by_position = [1.0] + [0.0] * 35, [kl or 0.0] * 3
    drawn = pictures(Report(variants=[variant]), tmp_path, "svg")
    assert "training" in drawn and ("quality_and_size" in drawn) == (kl == 0.1)
