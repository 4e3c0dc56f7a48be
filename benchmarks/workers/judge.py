"""How far a model is from its float model: one piece of code for ours and, in their own process, for those of peers."""

import torch


@torch.no_grad()
def judge(model, float_model, rows: list[list[int]]) -> dict[str, float]:
    """Means over all tokens of ``rows``: ``kl`` (forward, to the float model, nats), ``perplexity``, ``top1`` (the share of
    equal first choices)."""
    kl = loss = same = count = 0.0
    for row in rows:
        tokens = torch.tensor([row])
        wanted = float_model(tokens).logits[0].float().log_softmax(-1)
        found = model(tokens).logits[0].float().log_softmax(-1)
        kl += (wanted.exp() * (wanted - found)).sum(-1).double().sum().item()
        same += (wanted.argmax(-1) == found.argmax(-1)).sum().item()
        loss -= found[:-1].gather(-1, tokens[0, 1:, None]).double().sum().item()
        count += len(row)
    return {"kl": kl / count, "perplexity": float(torch.tensor(loss / (count - len(rows))).exp()), "top1": same / count}
