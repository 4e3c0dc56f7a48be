"""What operators are given beside a tensor, such as its outer scales, must fit it: kernels read without looking."""

import pytest
import torch
from sentences import matches
from torchqat import ops


@pytest.mark.parametrize(
    ("quantizer", "outer", "error", "message"),
    [
        ("int4 narrow 1x4 e4m3*float32@1x8", (2, 1), ValueError, matches("ops.outer-shape", shape="[2, 2]")),
        ("int4 narrow 1x4 e4m3*float32@-1x-1", (0, 0), ValueError, matches("ops.outer-shape", shape="[1, 1]")),
        ("int4 narrow 1x4 float32", (1, 1), ValueError, matches("ops.outer-for-none", name="outer_scale")),
        ("int4 narrow 1x4 e4m3*float32@1x8", None, TypeError, matches("ops.another-dtype", dtype="float32")),
    ],
)
def test_outer_scales_that_do_not_fit_are_refused(quantizer, outer, error, message):
    """Kernels read one of them for each block."""
    given = torch.ones(2, 2, dtype=torch.float64) if outer is None else torch.ones(outer)
    with pytest.raises(error, match=message):
        ops.choose_qparams(torch.randn(2, 16), f"minmax {quantizer}", outer_scale=given)
    with pytest.raises(error, match=message):
        ops.round_qparams(torch.ones(2, 4), f"learned {quantizer}", outer_scale=given)


def test_outer_scales_of_nothing_are_none():
    quantizer = "minmax int4 narrow 1x16 e4m3*float32@-1x-1"
    for device in ("cpu", "meta"):
        x = torch.empty(0, 64, device=device)
        outer, _ = torch.ops.qat.choose_outer_scales(x, quantizer)
        assert outer.shape == (0, 1)
        assert ops.fake_quantize(x, quantizer, outer_scale=outer).shape == x.shape


def test_what_is_kept_of_another_weight_is_refused():
    quantizer = "minmax int4 full 1x8 float32"
    kept = list(ops.encode(torch.randn(2, 8), quantizer))
    with pytest.raises(ValueError, match=matches("ops.kept-shape", shape="[3, 8]", found="[2, 4]")):
        ops.quant_linear(torch.randn(2, 8), torch.randn(3, 8), weight_quantizer=quantizer, kept=kept)


def test_panels_of_fewer_rows_are_refused():
    packed = torch.ops.qat.pack_panel_values(torch.randn(20, 3))
    assert torch.ops.qat.unpack_panel_values(packed, 20).shape == (20, 3)
    for rows in (-1, 33):
        with pytest.raises(ValueError, match=matches("ops.panel-values", rows=rows, shape="[2, 3, 16]")):
            torch.ops.qat.unpack_panel_values(packed, rows)
