"""The counts of instructions: machine code is run as a GPU would, and what it issues is counted."""

import re
from functools import partial

import pytest

np = pytest.importorskip("numpy")

from scripts import cuda_instruction_tables as tables  # noqa: E402
from scripts.cuda_counts import Counts  # noqa: E402
from scripts.cuda_instructions import Instructions  # noqa: E402
from scripts.machine_code.block import BARRIER_LATENCY, LATENCY, USUAL_LATENCY, Block  # noqa: E402
from scripts.machine_code.lanes import Launch  # noqa: E402
from scripts.machine_code.listing import parse  # noqa: E402
from scripts.machine_code.loads import LoadRounds  # noqa: E402
from scripts.machine_code.stages import BETWEEN, OF_THE_TOOLKIT, by_stage, stage_at  # noqa: E402


def run(code, threads=32, parameters=b"", tensors=(), block_of=Block):
    """Run lines of code, each an instruction or a label; the block and what it counted."""
    lines = ["\t.section\t.text.kernel,"]
    address = 0
    for line in code:
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    kernel = parse("\n".join(lines), re.compile("kernel"))["kernel"]
    regions = [(tensor.ctypes.data, tensor.nbytes) for tensor in tensors]
    block = block_of(kernel, Launch(90, threads, 1, 1024, parameters, regions))
    return block, block.run()


def results(code, inputs, threads=32):
    """The words of R10, R11 … and P0 after code that begins with the inputs in R0, R1 …"""
    given = np.array(inputs, np.uint32)
    out = np.zeros((3, threads), np.uint32)
    parameters = np.array([given.ctypes.data, out.ctypes.data], np.uint64).tobytes()
    begin = ["ULDC.64 UR4, c[0x0][0x210]", "ULDC.64 UR6, c[0x0][0x218]", "S2R R20, SR_TID.X"]
    begin += ["IMAD.MOV.U32 R22, RZ, RZ, UR4", "IMAD.MOV.U32 R23, RZ, RZ, UR5"]
    begin += [f"LDG.E R{i}, desc[UR8][R22.64+{4 * i:#x}]" for i in range(len(given))]
    end = ["IMAD.WIDE.U32 R22, R20, 0x4, RZ", "IADD3 R22, P1, R22, UR6, RZ"]
    end += ["IADD3.X R23, R23, UR7, RZ, P1, !PT", "SEL R12, RZ, 0x1, !P0"]
    end += [f"STG.E desc[UR8][R22.64+{4 * threads * i:#x}], R{10 + i}" for i in range(3)]
    run([*begin, *code, *end, "EXIT"], threads, parameters, [given, out])
    return [int(row[0]) for row in out]


A, B, C, D = 0xFFFFFFF0, 0x80000011, 0x00000123, 0x7FFFFFFF
LOW = 0xFFFFFFFF
SUM = A * B + (D << 32 | C)


@pytest.mark.parametrize(
    ("code", "inputs", "expected"),
    [
        ("IADD3 R10, P0, R0, R1, RZ", [A, B], [(A + B) & LOW, 0, 1]),
        ("IADD3 R10, P0, R0, -R1, RZ", [C, A], [(C - A) & LOW, 0, 0]),
        ("IADD3 R10, P0, R0, -R1, RZ", [C, 0], [C, 0, 1]),
        ("IMAD.WIDE R10, R0, R1, RZ", [A, C], [(-16 * C) & LOW, LOW, 0]),
        (
            "IMAD.WIDE.U32 R10, R0, R1, R2",
            [A, B, C, D],
            [SUM & LOW, SUM >> 32 & LOW, 0],
        ),
        ("IMAD.HI.U32 R10, R0, R1, RZ", [A, B], [A * B >> 32, 0, 0]),
        ("IADD3 R10, P1, P0, R0, R1, R2", [A, A, A], [(3 * A) & LOW, 0, 1]),
        ("IADD3 R10, P1, P0, R0, R1, RZ", [A, B], [(A + B) & LOW, 0, 0]),
        ("LEA R10, P0, R0, R1, 0x2", [A, B], [((A << 2 & LOW) + B) & LOW, 0, 1]),
        ("LEA.HI R10, R0, R1, RZ, 0x3", [A, C], [C + 7, 0, 0]),
        ("LEA.HI.X.SX32 R10, R0, R1, 0x1, PT", [A, C], [C, 0, 0]),
        ("SHF.R.S32.HI R10, RZ, 0x4, R0", [A], [LOW, 0, 0]),
        ("SHF.L.U64.HI R10, R0, 0x4, R1", [A, C], [C << 4 | 0xF, 0, 0]),
        ("LOP3.LUT R10, R0, R1, R2, 0x96, !PT", [A, B, C], [A ^ B ^ C, 0, 0]),
        ("LOP3.LUT P0, RZ, R0, 0x10, RZ, 0xc0, !PT", [A], [0, 0, 1]),
        ("PRMT R10, R0, 0x8051, R1", [0x44332211, 0x88776655], [0x00116622, 0, 0]),
        ("F2FP.F16.F32.PACK_AB R10, R0, R1", [0x3F800000, 0xC0200000], [0x3C00C100, 0, 0]),
        ("F2FP.F16.F32.PACK_AB R10, RZ, R0", [0x477FFF00], [0x00007C00, 0, 0]),
        ("F2FP.BF16.F32.PACK_AB R10, R0, R1", [0x3F808000, 0x3F818000], [0x3F803F82, 0, 0]),
        ("F2FP.BF16.F32.PACK_AB R10, RZ, R0", [0x7F800001], [0x00007FFF, 0, 0]),
        ("F2F.F16.F32 R10, R0", [0xC0200000], [0x0000C100, 0, 0]),
        ("F2F.F16.F32 R10, R0", [0x7F800001], [0x00007FFF, 0, 0]),
        ("FLO.U32 R10, R0", [C], [C.bit_length() - 1, 0, 0]),
        ("FLO.U32 R10, R0", [0], [LOW, 0, 0]),
        ("FLO.U32.SH R10, R0", [C], [32 - C.bit_length(), 0, 0]),
        ("IMNMX R10, R0, R1, PT", [A, C], [A, 0, 0]),
        ("IMNMX.U32 R10, R0, R1, PT", [A, C], [C, 0, 0]),
        ("ISETP.GT.AND P0, PT, R0, R1, PT", [A, C], [0, 0, 0]),
        ("ISETP.GT.U32.AND P0, PT, R0, R1, PT", [A, C], [0, 0, 1]),
        ("ISETP.GT.AND P1, P0, R0, R1, PT", [A, C], [0, 0, 1]),
        ("FADD R10, R0, -R0", [0x40490FDB], [0, 0, 0]),
        ("FSETP.NEU.AND P0, PT, R0, R0, PT", [0x7FC00000], [0, 0, 1]),
        ("FFMA.RM R10, R0, R1, 12582913", [0x3F800000, 0x3F666666], [0x4B400001, 0, 0]),
        ("I2F.U32.RP R10, R0", [0x01000001], [0x4B800001, 0, 0]),
        ("F2I.FTZ.U32.TRUNC.NTZ R10, R0", [0xBF800000], [0, 0, 0]),
        ("HFMA2.MMA R10, -RZ, RZ, 1.875, 0", [], [0x3F800000, 0, 0]),
    ],
)
def test_what_instructions_compute(code, inputs, expected):
    assert results([code], inputs) == expected


def test_a_comparison_of_double_words_ends_with_the_low_ones():
    code = ["ISETP.GT.U32.AND P1, PT, R0, R2, PT", "ISETP.GT.AND.EX P0, PT, R1, R3, PT, P1"]
    for first, second in [((C, A), (D, A)), ((D, A), (C, A)), ((D, A), (C, C)), ((C, C), (D, A))]:
        greater = [(np.int32(np.uint32(upper)), lower) for lower, upper in (first, second)]
        assert results(code, [*first, *second])[2] == (greater[0] > greater[1])


def test_votes_and_shuffles():
    part = "ISETP.GE.AND P1, PT, R20, 0x10, PT"  # true in the second half of the warp
    assert results([part, "VOTE.ANY R10, P0, P1"], []) == [0xFFFF0000, 0, 1]
    assert results([part, "VOTE.ALL R10, P0, P1"], []) == [0xFFFF0000, 0, 0]
    assert results(["SHFL.DOWN P0, R10, R20, 0x3, 0x1f"], []) == [3, 0, 1]
    assert results(["SHFL.UP P0, R10, R20, 0x3, 0x0"], []) == [0, 0, 0]  # none before the first
    assert results(["SHFL.IDX P0, R10, R20, 0x5, 0x1f"], []) == [5, 0, 1]


def test_addresses_with_a_scaled_register():
    code = ["S2R R20, SR_TID.X", "STS [R20.X4+0x10], R20", "MOV R0, 0xc", "LDS R1, [R0+0x10]"]
    block, _ = run([*code, "EXIT"])
    assert (block.lanes.words["R"][1] == 3).all()


def test_nothing_is_read_past_the_end_of_a_tensor():
    tensor = np.arange(4, dtype=np.uint32)
    parameters = np.array([tensor.ctypes.data], np.uint64).tobytes()
    code = ["MOV R0, c[0x0][0x210]", "MOV R1, c[0x0][0x214]"]
    block, _ = run([*code, "LDG.E R2, [R0.64+0xc]", "EXIT"], 32, parameters, [tensor])
    assert (block.lanes.words["R"][2] == 3).all()
    with pytest.raises(RuntimeError, match="outside of all"):
        run([*code, "LDG.E R2, [R0.64+0x10]", "EXIT"], 32, parameters, [tensor])


def test_lanes_that_parted_are_counted_apart_until_they_meet():
    code = [
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0x28, PT",  # 8 lanes of the second warp
        "BSSY B0, `(.L_meet)",
        "@P0 BRA `(.L_far)",
        "IADD3 R1, R0, 0x1, RZ",
        "BRA `(.L_meet)",
        ".L_far:",
        "IADD3 R1, R0, 0x2, RZ",
        ".L_meet:",
        "BSYNC B0",
        "IADD3 R2, R1, 0x1, RZ",
        "EXIT",
    ]
    _, counted = run(code, threads=64)
    # Both warps come to the near side, the second to the far one as well, and then it is united.
    assert [counted.issued[16 * i] for i in range(10)] == [2, 2, 2, 2, 2, 2, 1, 2, 2, 2]


def test_no_lane_waits_for_one_that_has_left():
    code = [
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0x8, PT",
        "BSSY B0, `(.L_meet)",
        "@!P0 BRA `(.L_meet)",
        "BRA `(.L_leave)",
        ".L_meet:",
        "BSYNC B0",
        "BRA `(.L_end)",
        ".L_leave:",
        "EXIT",
        ".L_end:",
        "EXIT",
    ]
    _, counted = run(code)
    assert [counted.issued[16 * i] for i in range(5, 9)] == [1, 1, 1, 1]


def test_uniform_registers_are_of_the_whole_warp():
    part = ["ISETP.GE.AND P0, PT, R20, 0x10, PT", "IADD3 R2, R20, 0x5, RZ"]
    # The second half of the warp sets it, to the value of its first lane; all lanes read it.
    assert results([*part, "@P0 R2UR UR9, R2", "MOV R10, UR9"], [])[0] == 0x10 + 5
    assert results([part[0], "VOTEU.ANY UR9, UPT, P0", "MOV R10, UR9"], [])[0] == 0xFFFF0000


def test_a_stack_is_of_a_thread():
    begin = ["MOV R1, c[0x0][0x28]", "IADD3 R1, R1, -0x10, RZ", "STL [R1+0x4], R20"]
    code = [*begin, "STL.64 [R1+0x8], R20", "LDL R10, [R1+0x4]", "LDL.64 R11, [R1+0x8]"]
    block, _ = run(["S2R R20, SR_TID.X", "MOV R21, 0x7", *code, "EXIT"], threads=64)
    assert (block.lanes.words["R"][[10, 11]] == np.arange(64)).all()
    assert (block.lanes.words["R"][12] == 7).all()


def test_a_loop_counts_for_each_turn_of_a_warp():
    code = [
        "S2R R0, SR_TID.X",
        "SHF.R.U32.HI R0, RZ, 0x5, R0",
        ".L_loop:",
        "IADD3 R0, R0, -0x1, RZ",
        "ISETP.GE.AND P0, PT, R0, RZ, PT",
        "@P0 BRA `(.L_loop)",
        "BAR.SYNC 0x0",
        "EXIT",
    ]
    _, counted = run(code, threads=96)
    assert counted.issued[32] == 1 + 2 + 3  # a warp goes around once more than its number
    assert counted.barriers == 1


def test_chain_is_of_dependences_and_not_of_instructions():
    independent = [f"IADD3 R{i}, RZ, 0x1, RZ" for i in range(20)]
    assert run([*independent, "EXIT"])[1].cycles == USUAL_LATENCY
    to_nowhere = ["LOP3.LUT P0, RZ, R0, R0, RZ, 0xc0, !PT", "LOP3.LUT R1, RZ, R0, RZ, 0xc0, !PT"]
    assert run([*to_nowhere, "EXIT"])[1].cycles == USUAL_LATENCY
    barrier = ["IADD3 R1, RZ, 0x1, RZ", "BAR.SYNC 0x0", "IADD3 R2, RZ, 0x1, RZ", "EXIT"]
    assert run(barrier)[1].cycles == 2 * USUAL_LATENCY + BARRIER_LATENCY
    chain = ["MUFU.RCP R1, R0", "FADD R2, R1, R1", "FADD R3, R2, R1"]
    assert run([*chain, *independent, "EXIT"])[1].cycles == LATENCY["MUFU"] + 2 * USUAL_LATENCY


def test_a_round_of_loads_ends_where_a_loaded_register_is_used():
    tensor = np.zeros(8, np.float32)
    address = tensor.ctypes.data
    arrays = {"first": (address, 16), "second": (address + 16, 16)}
    code = [
        "LDC.64 R0, c[0x0][0x210]",
        "LDG.E R2, [R0.64]",
        "LDG.E.64 R4, [R0.64+0x8]",
        "LDG.E R6, [R0.64+0x10]",
        "FADD R7, R5, R5",  # of the second load
        "FADD R7, R2, R2",  # the first round has ended
        "S2R R3, SR_TID.X",
        "ISETP.LT.AND P0, PT, R3, 0x20, PT",
        "@P0 LDG.E R2, [R0.64]",  # a second round, of one warp of two
        "LDG.E R8, [R0.64+0x14]",  # nothing of its array has been used
        "EXIT",
    ]
    parameters = np.uint64(address).tobytes()
    for threads in (32, 64):
        block, _ = run(code, threads, parameters, (tensor,), partial(LoadRounds, arrays=arrays))
        assert block.rounds == {"first": 2, "second": 1}
    assert block.counts.tolist() == [[2, 1], [1, 1]]


def test_rounds_are_told_of_calls_that_load_weights():
    rounds = {"recurrent_weight": 3, "interface_weight": 2}
    counted = COUNTED | {"sequence, forward": {90: Instructions({"read": 1.0}, 1, 1, rounds)}}
    rows = tables.rounds_table(counted).splitlines()[2:]
    assert rows == ["| sequence, forward | sm_90 | 3 | 2 |"]
    assert not tables.too_many_rounds(counted, {"90": 3})
    assert tables.too_many_rounds(counted, {"90": 2}) == [
        "sequence, forward on sm_90: recurrent_weight takes 3 rounds of loads, the budget is 2"
    ]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (["HMMA.16816 R0, R2, R4, R6"], NotImplementedError, "the instruction HMMA.16816"),
        (["MOV R0, 0x10000", "MOV R1, 0x0", "LDG.E R2, [R0.64]"], RuntimeError, "outside of all"),
        (["MOV R0, 0x2", "LDS R1, [R0]"], RuntimeError, "misaligned"),
        (["STL [RZ+0x1000], R0"], RuntimeError, "beyond the stack"),
        (["MOV R0, 0x100000", "LDS R1, [R0]"], RuntimeError, "beyond the shared memory"),
    ],
)
def test_bad_code_is_an_error(code, error, message):
    with pytest.raises(error, match=message):
        run(code, tensors=[np.zeros(4, np.uint32)])


def test_a_shuffle_from_an_absent_lane_is_an_error():
    code = ["S2R R0, SR_TID.X", "ISETP.GE.AND P0, PT, R0, 0x1, PT", "@P0 EXIT"]
    with pytest.raises(RuntimeError, match="one that is not there"):
        run([*code, "SHFL.BFLY PT, R1, R0, 0x1, 0x1f", "EXIT"])


def test_stages_by_the_functions_that_code_was_inlined_from(tmp_path, monkeypatch):
    source = tmp_path / "csrc/cuda/kernel.cu"
    source.parent.mkdir(parents=True)
    source.write_text(
        "void sum() {\n}\nvoid similarity() {\n  sum();\n}\nvoid phase() {\n  sum();\n}\n"
        "void step_kernel() {\n  similarity();\n  phase();\n}\n"
    )
    monkeypatch.chdir(tmp_path)
    file = "/another/checkout/csrc/cuda/kernel.cu"
    assert stage_at(((file, 1), (file, 4), (file, 10))) == "similarity"
    assert stage_at(((file, 1), (file, 7), (file, 11))) == "phase"
    assert stage_at(((file, 10),)) == BETWEEN
    assert stage_at((("/usr/include/kernel.cu", 3),)) == OF_THE_TOOLKIT


def test_code_of_other_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block, counted = run(["NOP", "EXIT"])
    with pytest.raises(RuntimeError, match="most instructions come from no source"):
        by_stage(block.kernel, counted.issued)


COUNTED = {
    "step, forward": {90: Instructions({"read": 800.0, "write": 195.0, "take": 5.0}, 80, 900)}
}


def test_budget_of_instructions():
    budget = tables.bounds(COUNTED)
    assert budget["step, forward"]["90"] == {"all": 1000, "read": 800, "write": 195, "others": 5}
    assert not tables.overruns(COUNTED, budget, "13.0", "13.0")
    budget["step, forward"]["90"]["read"] = 900
    assert not tables.overruns(COUNTED, budget, "13.0", "13.0")
    budget["step, forward"]["90"]["read"] = 799
    assert tables.overruns(COUNTED, budget, "13.0", "13.0") == [
        "step, forward on sm_90: read issues 800 warp instructions, the budget is 799"
    ]
    assert not tables.overruns(COUNTED, budget, "13.1", "13.0")
    assert len(tables.overruns(COUNTED, {}, "13.0", "13.0")) == 4


def test_modelled_time_is_the_busiest_part_and_the_chain():
    counts = Counts("ntm::step<float>", 1, 512, 1000, 1, 5, 3200, 3200, 1.0, 50, 1.0, 1.0)
    time = tables.modelled(counts, COUNTED["step, forward"][90])
    assert time == (250, 50, 20, 100, 900)
    assert time.microseconds == pytest.approx((250 + 900) / tables.CLOCK_GHZ / 1000)
