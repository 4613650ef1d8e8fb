"""Python starts with this where `tests/avx2` is on PYTHONPATH: torch, and vLLM which asks torch, see no AVX512.

The variables that `make test-avx2` sets keep torch's own kernels, oneDNN and MKL to AVX2, but what torch says of the
processor obeys none of them, and vLLM picks its compiled extension by it. A hook on the import, so that programs that
need no torch do not load it here.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_ASKED = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported")


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch.cpu":
            return None
        spec = PathFinder.find_spec(name, path, target)  # type: ignore[arg-type]
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def without_avx512(module: Any) -> None:
            execute(module)
            for name in _ASKED:
                assert callable(getattr(module, name))
                setattr(module, name, lambda: False)
            capabilities = module.get_capabilities
            module.get_capabilities = lambda: {
                name: has and not name.startswith(("avx512", "avx10", "amx")) for name, has in capabilities().items()
            }

        spec.loader.exec_module = without_avx512  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder)
