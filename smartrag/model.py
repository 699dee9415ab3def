"""The policy, its critic, and the two on one trunk.

Shapes: R rows of L tokens, N policy tokens, H hidden width, V vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from smartrag import adapters, model_folder
from smartrag.choices import Precision
from smartrag.config import Lora
from smartrag.loss import token_logprobs


class Policy(nn.Module):
    """A causal language model that scores the tokens it chose. Everything else of its output is never computed."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.lm = lm
        self._head_is_last = _head_is_last(lm)
        _check_packing(lm)

    def forward(
        self, token_ids: Tensor, mask: Tensor, temperature: float, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log π(token t | tokens < t) and the entropy of that distribution, [R, L] each, zero where mask is False.

        token_ids, mask, positions: [R, L], as in `packing.Packed`; without positions a row is one trajectory. No
        attention mask is passed: positions say where a trajectory begins, and padding on the right is out of sight of
        every real token anyway.
        """
        return self.score(token_ids, mask, temperature, positions)[:2]

    def score(
        self, token_ids: Tensor, mask: Tensor, temperature: float, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` gives, and the trunk's last hidden states, [R, L, H]."""
        chosen = mask[:, 1:]
        inputs = {"input_ids": token_ids, "position_ids": positions, "use_cache": False}
        if self._head_is_last:
            hidden = self.lm.base_model(**inputs).last_hidden_state
            logits = self.lm.get_output_embeddings()(hidden[:, :-1][chosen])  # [N, V]
        else:
            whole = self.lm(**inputs, output_hidden_states=True)
            hidden, logits = whole.hidden_states[-1], whole.logits[:, :-1][chosen]
        logp, entropy = token_logprobs(logits, token_ids[:, 1:][chosen], temperature)
        blank = torch.zeros(token_ids.shape, dtype=logp.dtype, device=logp.device)
        return blank.masked_scatter(mask, logp), blank.masked_scatter(mask, entropy), hidden


class Critic(nn.Module):
    """The policy's trunk with a scalar head, in place of the language model's."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.trunk = lm.base_model
        self.head = _value_head(lm)

    def forward(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """V of the state after token t, [R, L] float32. token_ids, positions: [R, L], as for `Policy`."""
        hidden = self.trunk(input_ids=token_ids, position_ids=positions, use_cache=False).last_hidden_state
        return self.head(hidden)[..., 0].float()


class SharedTrunk(nn.Module):
    """A policy whose trunk is its critic's too: a scalar head on the policy's last hidden states."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.policy = Policy(lm)
        self.head = _value_head(lm)

    def forward(
        self,
        token_ids: Tensor,
        mask: Tensor,
        temperature: float,
        positions: Tensor | None = None,
        head_alone: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs and entropies as `Policy`, values as `Critic`: [R, L] each. All arguments but the last are those of
        `Policy`; with `head_alone` the gradient of the values ends at the head.
        """
        logp, entropy, hidden = self.policy.score(token_ids, mask, temperature, positions)
        values = self.head(hidden.detach() if head_alone else hidden)[..., 0].float()
        # A loss of either output gives every parameter a gradient, of the other output's a zero one: ZeRO 3 would take
        # the gradient of an earlier step for a parameter that a backward pass leaves out.
        nothing = 0.0 * (logp + values)
        return logp + nothing, entropy, values + nothing


def _value_head(lm: PreTrainedModel) -> nn.Linear:
    """[H] -> [1]. Small, so that the first values are near 0 and advantages start as the rewards themselves; not zero,
    or the trunk would get no gradient. From a generator of its own: every rank must draw the same."""
    width = lm.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, dtype=lm.dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * 1e-2 / width**0.5)
        head.bias.zero_()
    return head


def load_policy(path: Path, precision: Precision, lora: Lora | None = None) -> Policy:
    return Policy(_load(path, precision, lora))


def load_critic(path: Path, precision: Precision, lora: Lora | None = None) -> Critic:
    """With adapters on its trunk; the head is trained whole."""
    return Critic(_load(path, precision, lora))


def load_shared(path: Path, precision: Precision, lora: Lora | None = None) -> SharedTrunk:
    """With adapters on the trunk; the value head is trained whole."""
    return SharedTrunk(_load(path, precision, lora))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Raises ValueError when it has no chat template: the policy speaks in turns."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {path} has no chat template; use an instruct model")
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do: nothing attends to padding on the right."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _load(path: Path, precision: Precision, lora: Lora | None) -> PreTrainedModel:
    model_folder.check(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    # Dropout would make the first-epoch ratio differ from 1, and the learner from the engine.
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    lm = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, precision.value),
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
    )
    if lora is not None:
        adapters.add(lm, lora)
    return lm


@torch.no_grad()
def _head_is_last(lm: PreTrainedModel) -> bool:
    """Whether logits are just output_embeddings(last hidden state); some architectures scale or cap them afterwards."""
    probe = torch.arange(4)[None]
    head = lm.get_output_embeddings()
    short = head(lm.base_model(input_ids=probe, use_cache=False).last_hidden_state)
    return torch.allclose(short.float(), lm(input_ids=probe, use_cache=False).logits.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def _check_packing(lm: PreTrainedModel) -> None:
    """Raises ValueError when two trajectories in one row are not what each is alone: attention would cross over."""
    ids = torch.tensor([[1, 2, 3]])
    alone = lm(input_ids=ids, use_cache=False).logits
    beside = lm(
        input_ids=torch.cat([ids.flip(1), ids], 1), position_ids=torch.arange(3).repeat(1, 2), use_cache=False
    ).logits[:, 3:]
    if not torch.allclose(alone.float(), beside.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"the architecture {lm.config.model_type} mixes trajectories that stand in one row (its attention does not "
            "follow position ids); use a model with causal attention that does, such as Llama, Qwen or Mistral"
        )
