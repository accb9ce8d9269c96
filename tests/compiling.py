"""How programs of tests compile, told before JAX is imported.

Most of the time goes into compiling programs that run for milliseconds. Without optimisation, in
one piece and without the emitters of fusions that is half of it. The default suite compiles so. The
slow tests compile as users do, all but the programs that they start and those of some rooms (`make
test-slow`). What trains a convolution for a thousand steps takes minutes without it.
"""

import os
from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
# jaxlib 0.12 knows no other emitters, and dies of a flag that it does not know.
if version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
SLOW = os.environ.get("HYPOTHESIS_PROFILE", "default") != "default"
QUICKLY = not SLOW or bool(os.environ.get("COMPILE_QUICKLY"))


def compile_quickly() -> None:
    """For this process, if it has not begun with JAX, and for those that it starts."""
    os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
