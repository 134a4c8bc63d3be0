"""What a compiled program moves between a chip and its main memory."""

import pytest

from cinema_jax.planning.traffic import bytes_moved

# 8 x 128 numbers in bf16 are one tile of 2048 bytes, and so are fewer: axes are filled up.
PROGRAM = """\
%slices (p: bf16[6,8,128], i: s32[]) -> bf16[8,128] {
  %p = bf16[6,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  ROOT %one = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p, %i)
}

%updates (p: bf16[6,8,128], u: bf16[1,8,128], i: s32[]) -> bf16[6,8,128] {
  %p = bf16[6,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %u = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  ROOT %all = bf16[6,8,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%p, %u, %i)
}

%condition (p: (s32[], bf16[6,8,128])) -> pred[] {
  %limit = s32[]{:S(6)} constant(6)
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:S(6)} compare(%i, %limit), direction=LT
}

%body (p: (s32[], bf16[6,8,128])) -> (s32[], bf16[6,8,128]) {
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  %all = bf16[6,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %one = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} fusion(%all, %i), kind=kLoop, calls=%slices
  %new = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} exponential(%one)
  %set = bf16[6,8,128]{2,1,0:T(8,128)(2,1)} fusion(%all, %new, %i), kind=kLoop, calls=%updates, \
output_to_operand_aliasing={{}: (0, {})}
  ROOT %out = (s32[]{:S(6)}, bf16[6,8,128]{2,1,0:T(8,128)(2,1)}) tuple(%next, %set)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  BODY
}
"""


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        # Read and written, in 4 bytes; the transposed one has its 8 as the last axis, filled up to 128.
        ("ROOT %y = f32[8,128]{1,0:T(8,128)} add(%x, %x)", 3 * 4096),
        ("ROOT %y = f32[8,128]{0,1:T(8,128)} negate(%x)", 4096 + 128 * 128 * 4),
        # Into the chip's fast memory and on there.
        ("%y = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)\n  ROOT %z = f32[8,128]{1,0:T(8,128)S(1)} negate(%y)", 4096),
        ("%s = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%x)", 4096),
        # Each turn reads one slice and writes one.
        ("%w = (s32[], bf16[6,8,128]) while(%t), condition=%condition, body=%body", 6 * 2 * 2048),
    ],
)
def test_bytes_moved(lines, moved):
    assert bytes_moved(PROGRAM.replace("BODY", lines)) == moved
