"""auto-round on a model, in an environment of its own. See ``common.py`` beside this file."""

import sys
import time

# This file has the name of the package, whose folder must come first.
sys.path.append(sys.path.pop(0))


def quantize(folder: str, rows: list[list[int]], bits: int, group: int, method: str):
    import torch
    from auto_round import AutoRound
    from common import load
    from transformers import AutoTokenizer

    model = load(folder)
    tokens = [torch.tensor(row)[None] for row in rows]
    settings = {"nsamples": len(rows), "seqlen": len(rows[0]), "batch_size": 8, "iters": 200}
    rounder = AutoRound(
        model, AutoTokenizer.from_pretrained(folder), scheme="W4A16", bits=bits, group_size=group, sym=True,
        dataset=tokens, device_map="cpu", amp=False, **settings,
    )  # fmt: skip
    begun = time.monotonic()
    model, _ = rounder.quantize()
    return model.state_dict(), time.monotonic() - begun


if __name__ == "__main__":
    from common import main

    main(quantize)
