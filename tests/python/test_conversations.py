"""Conversations as rows of batches: padded, packed, drawn from several sources, and what of them counts."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchqat
from sentences import matches
from torchqat import UserError
from torchqat._library import DistillSection
from torchqat.data.batch import chunks
from torchqat.data.batches import Batches
from torchqat.data.conversations import Conversations, Row, collated
from torchqat.data.mixed_batches import MixedBatches
from torchqat.data.packing import packed
from torchqat.data.token_file import Tokens, TokenWriter, read_tokens
from torchqat.kinds import CausalLM
from torchqat.kinds.packed_rows import check_packs

KIND = CausalLM()


@pytest.fixture
def tokens(tmp_path):
    """Twelve conversations of 6 to 17 tokens, the second half of each an answer."""
    with TokenWriter(tmp_path / "tokens", 400, masks=True) as writer:
        for place in range(12):
            ids = list(range(20 * place, 20 * place + 6 + place))
            writer.add(ids, [i >= len(ids) // 2 for i in range(len(ids))])
            writer.end_row()
    return read_tokens(tmp_path / "tokens")


def model(attention="sdpa"):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def test_rows_are_cut_off_and_those_with_nothing_to_learn_left_out(tokens):
    found = Conversations(tokens, 8)
    assert (len(found), found.left_out, found.cut) == (10, 2, 7)  # of 16 and 17 tokens, the first 8 are no answer
    row = found.row(0)
    assert row.ids.tolist() == [0, 1, 2, 3, 4, 5] and row.counted.tolist() == [False] * 3 + [True] * 3
    assert len(found.row(9).ids) == 8
    with pytest.raises(UserError, match=matches("data.nothing-to-learn", source="a.jsonl", length=2)):
        Conversations(tokens, 2).check("a.jsonl")


def test_every_conversation_is_packed_once_and_whole(tokens):
    found = Conversations(tokens, 24, packing=True)
    rows = [found.row(place) for place in range(len(found))]
    assert all(len(row.ids) <= 24 for row in rows) and len(rows) < 10
    assert sorted(torch.cat([row.ids for row in rows]).tolist()) == sorted(tokens.ids.tolist())
    for row in rows:
        begins = row.positions == 0
        assert not row.counted[begins].any(), "nothing predicts a first token"
        assert torch.equal(row.positions[1:][~begins[1:]], row.positions[:-1][~begins[1:]] + 1)
    order, begins = packed(np.array([3, 3, 3, 3]), 7)
    assert sorted(order.tolist()) == [0, 1, 2, 3] and begins.tolist() == [0, 2, 4]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("width", [0, 24])
def test_packed_and_padded_rows_say_what_single_sequences_say(tokens, attention, width):
    found, net = Conversations(tokens, 24, packing=width > 0), model(attention)
    rows = [found.row(place) for place in range(4)]
    batch = collated(rows, packed_to=width)
    assert ("attention_mask" in batch) == (width == 0)
    with torch.no_grad():
        logits = KIND.outputs(net, batch)
        for given, row in zip(logits, rows, strict=True):
            starts = [*(row.positions == 0).nonzero().flatten().tolist(), len(row.ids)]
            for begin, end in zip(starts, starts[1:], strict=False):
                alone = net(input_ids=row.ids[None, begin:end]).logits[0]
                torch.testing.assert_close(given[begin:end], alone, rtol=1e-4, atol=1e-5)


def test_models_that_cannot_pack_are_refused():
    from transformers import MambaConfig, MambaForCausalLM

    check_packs(model(), KIND)
    check_packs(model("eager"), KIND)
    check_packs(model().bfloat16(), KIND)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, state_size=4, num_hidden_layers=2))
    with pytest.raises(UserError, match=matches("data.packing-needs", model="MambaForCausalLM")):
        check_packs(mamba, KIND)

    class Careless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, position_ids=None, **options):
            return self.inner(input_ids=input_ids, **options)

    with pytest.raises(UserError, match=matches("data.packing-sees", model="Careless")):
        check_packs(Careless(), KIND)


def settings(**values):
    found = DistillSection()
    for name, value in values.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("distill", [{"loss": "cross_entropy"}, {}, {"weight": 0.5, "temperature": 2.0}])
def test_the_loss_is_that_of_answers_whatever_the_split(tokens, distill):
    """In float64 by hand: the mean over all predictions of answers of the step, also of its parts together."""
    rows = MixedBatches([Conversations(tokens, 24)], [1.0], 8, seed=0)
    batch, net = rows[0], model()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        student, teacher = (KIND.outputs(one, batch).double()[:, :-1] for one in (net, other))
    labels = batch["labels"][:, 1:]
    chosen = labels != -100
    assert 0 < chosen.sum() < batch["attention_mask"].sum()
    t = distill.get("temperature", 1.0)
    kl = F.kl_div((student / t).log_softmax(-1), (teacher / t).log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    ce = F.cross_entropy(student.transpose(1, 2), labels.clamp(min=0), reduction="none")
    weight = 0.0 if distill.get("loss") else distill.get("weight", 1.0)
    wanted = (weight * t**2 * kl + (1 - weight) * ce)[chosen].mean()

    def loss(part):
        given = None if weight == 0 else KIND.outputs(other, part)
        return KIND.loss(settings(**distill), KIND.outputs(net, part), given, part)

    torch.testing.assert_close(loss(batch).double(), wanted, rtol=1e-4, atol=1e-5)
    for count in (2, 4, 8):
        mean = sum(loss(part) for part in chunks(batch, count)) / count
        torch.testing.assert_close(mean.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_part_with_nothing_to_predict_adds_nothing(tokens):
    batch = collated([Row.of(torch.arange(5), torch.zeros(5, dtype=torch.bool))], per_row=3.0)
    loss = KIND.loss(settings(), KIND.outputs(model(), batch), torch.zeros(1, 5, 400), batch)
    assert loss == 0 and loss.requires_grad


def test_figures_are_those_of_answers(tokens):
    net, other = model(), model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = Conversations(tokens, 24)
    padded = [collated([rows.row(place) for place in range(12)])]
    alone = [collated([rows.row(place)]) for place in range(12)]
    found, wanted = (torchqat.evaluate(net, batches, other) for batches in (padded, alone))
    assert found.tokens == wanted.tokens == int(tokens.counted.sum())
    for name in ("perplexity", "kl", "top1_agreement"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-5)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-4) and len(found.losses) == 12
    assert found.kls == pytest.approx(wanted.kls, rel=1e-4)
    assert sum(found.kl_shares) == pytest.approx(1.0)
    logits = net(input_ids=alone[3]["input_ids"]).logits[0].double()
    places = alone[3]["labels"][0, 1:] != -100
    by_hand = F.cross_entropy(logits[:-1][places], alone[3]["input_ids"][0, 1:][places])
    assert found.losses[3] == pytest.approx(by_hand.item(), rel=1e-5)


def test_sources_are_drawn_by_weight_and_by_the_step_alone(tokens):
    texts, chats = Batches(Tokens.of(torch.arange(300, 400)), 1, 24, 0), Conversations(tokens, 24)

    def drawn(seed=3):
        return MixedBatches([texts, chats], [3.0, 1.0], 8, seed)

    batch, again = drawn()[7], drawn()[7]
    assert batch.keys() == again.keys() and all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(drawn()[8]["input_ids"], drawn(4)[8]["input_ids"])
    share = np.mean([(drawn()[step]["input_ids"][:, 0] >= 300).float().mean().item() for step in range(200)])
    assert share == pytest.approx(0.75, abs=0.05)
    assert drawn().content != MixedBatches([texts, chats], [1.0, 1.0], 8, 3).content
    two = MixedBatches([texts, Batches(Tokens.of(torch.arange(100)), 1, 24, 0)], [1.0, 1.0], 8, 0)[0]
    assert isinstance(two, torch.Tensor) and two.shape == (8, 24)
    assert len(MixedBatches([chats], [1.0], 30, 0)[0]["input_ids"]) == 30, "more rows than there are"
    row = next(row for row in batch["labels"] if row[1] >= 300)
    assert row[0] == -100 and (row[1:] >= 300).all(), "all tokens of a text"
