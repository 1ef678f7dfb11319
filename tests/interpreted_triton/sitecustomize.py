"""Lets vLLM's newer model runner work on a CPU, slowly: Triton's own interpreter runs its kernels.

Python imports it when it starts with this folder in PYTHONPATH. With TRITON_INTERPRET=1 nothing is compiled,
so all that vLLM misses is the name of a CPU among Triton's backends.
"""

from typing import Any

from triton import backends


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", "none", 1)


backends.backends["cpu"] = backends.Backend(compiler=None, driver=_Driver)
