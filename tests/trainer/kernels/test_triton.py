"""The Triton kernel without a GPU: interpreted on the CPU, and compiled for every GPU we name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

triton = pytest.importorskip("triton")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INTERPRETED = [
    "tests/trainer/kernels/test_kernel_rows.py",
    "tests/trainer/kernels/test_linear_focal.py",
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests themselves run it on the GPU")
def test_the_tests_of_the_losses_pass_in_the_interpreter():
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-k", "triton", *INTERPRETED,
            # numpy warns of log(0) = -inf, and of an exp at the target that is replaced after.
            "-W", "ignore::RuntimeWarning",
        ],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 100


def compile_row_kernel(arch, logits, gradient, block, num_warps):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.kernels.rows_triton import nll_gradient_kernel

    types = {
        "logits_ptr": f"*{logits}", "gradient_ptr": f"*{gradient}", "target_ptr": "*i64",
        "nll_ptr": "*fp32", "HAS_GRADIENT": "constexpr", "BLOCK": "constexpr",
    }  # fmt: skip
    names = nll_gradient_kernel.arg_names
    source = ASTSource(
        fn=nll_gradient_kernel,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index("HAS_GRADIENT"),): True, (names.index("BLOCK"),): block},
        # What the launcher finds for buffers of torch: addresses and strides divide by 16.
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.islower()},
    )
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"num_warps": num_warps})


def memory_per_thread(compiled, folder):
    """Bytes of stack and local memory: not 0 where registers have spilled."""
    import triton.backends.nvidia as nvidia

    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    listing = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    return [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", listing)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("arch", [70, 75, 80, 89, 90])
@pytest.mark.parametrize(
    ("logits", "gradient"),
    [("fp32", "fp16"), ("fp32", "bf16"), ("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16")],
)
def test_the_row_kernel_compiles_without_spills(arch, logits, gradient, tmp_path):
    from trainer.kernels.rows_triton import BLOCK, NUM_WARPS

    compiled = compile_row_kernel(arch, logits, gradient, BLOCK, NUM_WARPS)
    assert f".target sm_{arch}" in compiled.asm["ptx"]
    assert memory_per_thread(compiled, tmp_path) == [0, 0]
    assert "ld.global.v4" in compiled.asm["ptx"]
    # The hardware's logarithm has an absolute error of 2^-22: a confident row's nll would drown.
    assert "lg2.approx" not in compiled.asm["ptx"]


def test_a_spill_would_be_seen(tmp_path):
    compiled = compile_row_kernel(80, "fp32", "fp32", 16384, 16)
    assert memory_per_thread(compiled, tmp_path) != [0, 0]
