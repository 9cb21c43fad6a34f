"""Compile the kernels in Triton for a device that need not be there, down to its machine code.

    python tests/kernels/compile_for_device.py [ARCHITECTURE ...]       by default 80 (A100) and 90 (H100)
    python tests/kernels/compile_for_device.py --few

Triton's interpreter takes what its compiler refuses: variables that change their type in a loop, names that are no
constants. Prints each variant with the registers of a thread and the bytes that do not fit into them; a byte is a
fault, as is a refusal. ``--few`` is one variant of each kind of code. Exit status: 0 all compile, 1 one does not.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # Before the kernels are imported.
    os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tutelage.kernels import triton_kernels, triton_sweeps

POINTERS = {"index": "i64", "labels": "i64"} | dict.fromkeys(("level", "statistics", "ce", "values"), "fp32")
POINTERS |= dict.fromkeys(("of_ce", "of_values"), "fp32")
NUMBERS = ("a", "g", "factor", "mixture")
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, architecture, dtype, constants):
    """Return the registers of a thread, and the bytes of its own memory beyond them."""
    signature, values = {}, {}
    constants = {"BLOCK": triton_sweeps.BLOCK, "BLOCKS": 63, "TOP": 64, **constants}
    for name in kernel.arg_names:
        absent = name in ("index", "level") and not constants["SPARSE"]
        if name in constants or absent:
            signature[name], values[name] = "constexpr", constants.get(name)
        elif name in ("z", "v", "dz"):
            signature[name] = f"*{dtype}"
        elif name in POINTERS:
            signature[name] = f"*{POINTERS[name]}"
        else:
            signature[name] = "fp32" if name in NUMBERS else "i32"
    at = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    # What Triton finds of tensors and of vocabularies that are a multiple of 16, so that it reads 128 bits at a time.
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name.endswith("stride")]
    known = {at[name]: [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, {at[name]: value for name, value in values.items()}, known)
    warps = triton_sweeps.BLOCK // 256
    code = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def variants(few):
    """Yield a kernel, what it reads and its constants."""
    for kind, sparse, scaled in itertools.product(triton_kernels.KINDS, (False, True), (False, True)):
        if few and (kind not in ("forward", "jensen_shannon") or sparse == scaled):
            continue
        mixes = kind not in ("forward", "reverse")
        shared = {"KIND": triton_kernels.KINDS[kind], "SCALED": scaled, "SPARSE": sparse}
        whole = {"FIRST_SWEEP": True, "SECOND_SWEEP": mixes, "BEGINS": True, "ENDS": True}
        sweeps = [whole]
        if not sparse:  # Of the fused last layer.
            sweeps.append(dict.fromkeys(whole, False) | {"FIRST_SWEEP": True})
            if mixes:
                sweeps.append(dict.fromkeys(whole, False) | {"SECOND_SWEEP": True})
        for sweep, dtype in itertools.product(sweeps, ("bf16",) if few else ("bf16", "fp16", "fp32")):
            yield triton_kernels.forward, dtype, {**shared, **sweep, "POWER_SUM": kind == "forward" and not scaled}
        for dtype in ("bf16",) if few else ("bf16", "fp16", "fp32"):
            yield triton_kernels.backward, dtype, {**shared, "HAS_CE": True, "HAS_VALUES": True}


def main(arguments):
    few = "--few" in arguments
    architectures = [int(a) for a in arguments if a != "--few"] or ([90] if few else [80, 90])
    faults = 0
    for architecture, (kernel, dtype, constants) in itertools.product(architectures, variants(few)):
        said = ", ".join(f"{name}={value}" for name, value in constants.items())
        registers, spilled = compiled(kernel, architecture, dtype, constants)
        faults += spilled > 0
        print(f"sm_{architecture} {kernel.__name__} {dtype} {said}: {registers} registers, {spilled} bytes", flush=True)
    print("compiled" if not faults else f"{faults} of them need more than registers")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
