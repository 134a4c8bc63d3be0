"""What `benchmarks/schedules.py` reads from libtpu's texts."""

from benchmarks.schedules import schedule

# A loop from bundle 2 to 13: a piece that only some steps run, a block of five bundles, and a branch around both.
BUNDLES = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = inlined_call_operand.vmem [shape: bf16[2,4096,64]] }
   0x1   :  { %s2 = sld [smem:[#allocation0]] }
   0x2 LB: > { %p1 = scmp.ge.s32.totalorder %s1, 2 }
   0x3   : > { %4 = sbr.rel (%p1) target bundleno = 12 (0xc), region = 36  ;;  %s9 = sld [smem:[#allocation36]] }
   0x4   : > { %5 = sbr.rel (%p2) target bundleno = 6 (0x6), region = 48 }
   0x5   : > { %6 = vst [vmem:[#allocation1]] %v1 }
   0x6 PF: > { %7 = sbr.rel (%p3) target bundleno = 12 (0xc), region = 52 }
   0x7   : > { %8 = vmatmul.bf16.gmra.mxu0 %v2 }
   0x8   :  {}
   0x9   : > { %9 = vst [vmem:[#allocation2_spill]] %v3 }
   0xa   : > { %10 = vst [vmem:[#allocation2]] %v4 }
   0xb   :  {}
   0xc PF: > { %p4 = scmp.ge.s32.totalorder %s50, 18 }
   0xd   :  { %11 = sbr.rel (!%p4) target bundleno = 2 (0x2), region = 134 }
"""
UNITS = """\
== CAPACTIY:
MATMUL, VSTORE, VSTORE:SPILL
    4     1     1
== UTILIZATION:
0 0 0
0 0 0
0 0 0
0 0 0
0 0 0
0 1 0
0 0 0
4 0 0
4 0 0
2 1 1
0 1 0
0 0 0
0 0 0
0 0 0
"""


def test_the_longest_stretch_is_the_block():
    found = schedule(BUNDLES, UNITS)
    assert found.cycles == 5
    assert found.busy == {"MATMUL": 0.5, "VSTORE": 0.4, "VSTORE:SPILL": 0.2}
    assert found.spills == 0.5


def test_the_rest_is_what_every_step_runs():
    # Bundles 2, 3, 4, 6, 12 and 13.
    assert schedule(BUNDLES, UNITS).rest == 6
