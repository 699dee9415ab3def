"""Policy and critic against transformers itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from smartrag.choices import Precision
from smartrag.model import Critic, Policy, load_critic, load_policy, load_tokenizer
from smartrag.origin import find
from tests import tiny, toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def test_policy_scores_tokens_as_transformers_does(folder: Path) -> None:
    policy = load_policy(folder, Precision.float32)
    ids = torch.randint(200, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 17, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[:, 0] = False
    with torch.no_grad():
        logp, entropy = policy(ids, mask, 0.7)
        p = (policy.lm(ids).logits / 0.7).log_softmax(-1)
    wanted = torch.zeros(3, 17)
    wanted[:, 1:] = p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(logp, torch.where(mask, wanted, 0.0), atol=1e-5)
    uncertain = -(p.exp() * p).sum(-1)
    assert torch.allclose(entropy[:, 1:], torch.where(mask[:, 1:], uncertain[:, :-1], 0.0), atol=1e-5)


def test_padding_on_the_right_is_not_seen(folder: Path) -> None:
    policy, critic = load_policy(folder, Precision.float32), load_critic(folder, Precision.float32)
    ids = torch.randint(200, (1, 9))
    mask = torch.tensor([[False] * 4 + [True] * 5])
    longer, longer_mask = torch.cat([ids, torch.full((1, 6), 3)], 1), torch.cat([mask, torch.zeros(1, 6).bool()], 1)
    with torch.no_grad():
        assert torch.allclose(policy(longer, longer_mask, 1.0)[0][:, :9], policy(ids, mask, 1.0)[0], atol=1e-5)
        assert torch.allclose(critic(longer)[:, :9], critic(ids), atol=1e-5)


def test_a_micro_batch_without_policy_tokens_has_zero_gradients_everywhere(folder: Path) -> None:
    policy = load_policy(folder, Precision.float32)
    logp, entropy = policy(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool), 1.0)
    (logp.sum() + entropy.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_the_critic_starts_near_zero_the_same_everywhere_and_passes_gradient_to_its_trunk(folder: Path) -> None:
    torch.manual_seed(1)
    critic = load_critic(folder, Precision.float32)
    torch.manual_seed(2)
    again = load_critic(folder, Precision.float32)
    values = critic(torch.randint(200, (2, 30)))
    assert values.shape == (2, 30)
    assert values.abs().max() < 0.1
    assert torch.equal(critic.head.weight, again.head.weight)
    values.sum().backward()
    assert next(critic.trunk.parameters()).grad is not None


def test_dropout_is_off_even_in_training_mode(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5)).save_pretrained(
        tmp_path
    )
    toys.tokenizer().save_pretrained(tmp_path)
    policy = load_policy(tmp_path, Precision.float32).train()
    ids, mask = torch.randint(200, (1, 9)), torch.tensor([[False] * 4 + [True] * 5])
    assert torch.equal(policy(ids, mask, 1.0)[0], policy(ids, mask, 1.0)[0])


def test_a_model_that_scales_its_logits_is_scored_whole() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=4.0, initializer_range=0.5,
    )  # fmt: skip
    lm = GraniteForCausalLM(config)
    ids, mask = torch.randint(200, (1, 6)), torch.tensor([[False] * 3 + [True] * 3])
    with torch.no_grad():
        wanted = lm(ids).logits[:, 2:-1].log_softmax(-1).gather(-1, ids[:, 3:, None])[..., 0]
        assert torch.allclose(Policy(lm)(ids, mask, 1.0)[0][:, 3:], wanted, atol=1e-5)


def test_bfloat16_scores_in_float32(folder: Path) -> None:
    policy = load_policy(folder, Precision.bfloat16)
    assert next(policy.parameters()).dtype is torch.bfloat16
    logp, _ = policy(torch.randint(200, (1, 6)), torch.tensor([[False] * 3 + [True] * 3]), 1.0)
    assert logp.dtype is torch.float32
    assert Critic(policy.lm)(torch.randint(200, (1, 6))).dtype is torch.float32


def test_what_cannot_be_a_policy_is_refused_with_the_reason(tmp_path: Path) -> None:
    T5Config(vocab_size=32, d_model=16, num_layers=1, num_heads=2).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        load_policy(tmp_path / "t5", Precision.float32)
    tiny.llama().config.save_pretrained(tmp_path / "pickled")
    torch.save(tiny.llama().state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_policy(tmp_path / "pickled", Precision.float32)
    plain = toys.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(tmp_path / "base")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_models_folder_is_refused_and_does_not_run(name: str, folder: Path, tmp_path: Path) -> None:
    evil, marker = tmp_path / "evil", tmp_path / "marker"
    shutil.copytree(folder, evil)
    (evil / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    asked = {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Tokenizer", None]}
    (evil / name).write_text(json.dumps(json.loads((evil / name).read_text()) | {"auto_map": asked}))
    for act in (lambda: load_policy(evil, Precision.float32), lambda: find(str(evil), tmp_path)):
        with pytest.raises(ValueError, match=r"own\.py is code; ") as caught:
            act()
        assert f"{name} asks for code of its own (auto_map)" in str(caught.value)
    assert not marker.exists()
