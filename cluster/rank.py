"""One process of the learner: policy, critic and reference under DeepSpeed, at the command of `cluster/learner.py`."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from cluster import zero
from cluster.disk import Disk
from cluster.resume import STATE, check_learner, shape
from cluster.sender import WeightSender
from smartrag import model
from smartrag.actor_critic import Separate, Shared
from smartrag.choices import Critic
from smartrag.config import Run
from smartrag.loss import KLController
from smartrag.ranks import Ranks
from smartrag.types import Trajectory
from smartrag.update import Setup, imitate, update, update_seed

_REFERENCE = "reference.safetensors"


class LearnerRank:
    """One process of the learner. Every method is a collective: all ranks call it, in one order."""

    def __init__(self, run: Run, path: Path, rank: int):
        self.run, self.rank, self._path = run, rank, path
        self._reference: Any = None
        self._reference_module: torch.nn.Module | None = None
        self._kl = KLController(run.algorithm.kl_coef, run.algorithm.kl_target)
        self._sender, self._disk = WeightSender(rank), Disk()
        torch.set_num_threads(run.learner.threads)

    def start(self, host: str, port: int) -> None:
        """Joins the other ranks and loads the models."""
        group, precision = self.run.learner, self.run.model.precision
        self._ranks: Ranks = zero.join(
            self.rank,
            group.ranks,
            host,
            port,
            gpu=group.gpus > 0,
            node_ip=ray.util.get_node_ip_address(),
            timeout_s=self.run.cluster.call_timeout_s,
        )
        self._tokenizer = model.load_tokenizer(self._path)
        self._pad_id = model.pad_id(self._tokenizer)
        # Engines by the names of their files in a checkpoint; a shared trunk is the policy's.
        self._engines: dict[str, zero.ZeroEngine] = {}
        if self.run.algorithm.critic is Critic.shared:
            both = model.load_shared(self._path, precision, self.run.model.lora)
            self._lm, parts = both.policy.lm, {"policy": both.policy, "critic": both.head}
            self._engines["policy"] = zero.ZeroEngine(both, parts, group, precision, self._disk)
            return
        policy = model.load_policy(self._path, precision, self.run.model.lora)
        self._lm = policy.lm
        self._engines["policy"] = zero.ZeroEngine(policy, {"policy": policy}, group, precision, self._disk)
        if self.run.algorithm.advantage.has_critic:
            critic = model.load_critic(self._path, precision, self.run.model.lora)
            self._engines["critic"] = zero.ZeroEngine(critic, {"critic": critic}, group, precision, self._disk)

    @property
    def _policy(self) -> zero.ZeroEngine:
        return self._engines["policy"]

    def _models(self) -> Separate | Shared:
        algorithm = self.run.algorithm
        if algorithm.critic is Critic.shared:
            return Shared(self._policy, algorithm.value_coef, self._reference)
        return Separate(self._policy, self._engines.get("critic"), self._reference)

    def _set_learning_rates(self, policy: float, critic: float) -> None:
        for engine in self._engines.values():
            engine.set_learning_rates({"policy": policy, "critic": critic})

    # -- learning -----------------------------------------------------------------------------------------------------

    def imitate(self, trajectories: Sequence[Trajectory], learning_rate: float) -> dict[str, float]:
        self._set_learning_rates(policy=learning_rate, critic=0.0)
        tokens = self.run.learner.micro_batch_tokens
        return imitate(self._policy, trajectories, self._ranks, pad_id=self._pad_id, micro_batch_tokens=tokens)

    def snapshot_reference(self) -> None:
        """The policy as it is now becomes the reference, and its optimiser forgets what warm-up taught it."""
        self._policy.forget_moments()
        if self.run.model.lora is not None:
            self._policy.fold_adapters()
            self._reference = self._policy.forward_without_adapters
        else:
            zero.copy_parameters(list(self._lm.parameters()), self._make_reference())

    def update(self, minibatches: Sequence[Sequence[Trajectory]], step: int) -> dict[str, float]:
        """PPO on this rank's share of every minibatch. `step` counts from 0."""
        began = time.monotonic()
        if self._reference is None:
            raise RuntimeError("there is no reference policy yet: call snapshot_reference() before the first update")
        group, algorithm = self.run.learner, self.run.algorithm
        left = 1 - (1 - group.final_rate) * min(1.0, step / max(1, self.run.train.steps))
        train_policy = step >= algorithm.critic_warmup_steps
        policy_rate = group.learning_rate * left if train_policy else 0.0
        self._set_learning_rates(policy=policy_rate, critic=group.critic_learning_rate * left)
        setup = Setup(
            models=self._models(),
            algorithm=algorithm,
            ranks=self._ranks,
            kl_coef=self._kl.coefficient,
            pad_id=self._pad_id,
            micro_batch_tokens=group.micro_batch_tokens,
            train_policy=train_policy,
            seed=update_seed(self.run.seed, step),
        )
        metrics = update(minibatches, setup)
        self._kl = self._kl.after(metrics["kl_ref_episode"])
        return metrics | {"seconds_learner": time.monotonic() - began}

    def _make_reference(self) -> list[torch.nn.Parameter]:
        """Builds the reference if need be; its weights are the caller's to fill in."""
        if self._reference_module is None:
            precision = self.run.model.precision
            self._reference_module = model.load_policy(self._path, precision)
            device = self._ranks.device
            self._reference = zero.freeze(self._reference_module, self.run.learner, precision, device)
        return list(self._reference_module.parameters())

    # -- state --------------------------------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Takes everything that the next update depends on; `folder`, which all ranks share, has it once `written`."""
        from safetensors.torch import save_file

        into = Path(folder)
        into.mkdir(parents=True, exist_ok=True)
        for name, engine in self._engines.items():
            engine.save(str(into / name))
        random = _random_state(self._ranks.device)
        self._disk.put(partial(save_file, random, str(into / f"random-{self.rank}.safetensors")))
        if self._reference_module is not None:
            tensors = {n: t.cpu().clone() for n, t in zero.named_tensors(self._reference_module) if self.rank == 0}
            if self.rank == 0:
                self._disk.put(partial(save_file, tensors, str(into / _REFERENCE)))
        if self.rank == 0:
            state = shape(self.run) | {"kl_coef": self._kl.coefficient, "reference": self._reference is not None}
            (into / STATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: str) -> None:
        """Restores what `save` wrote, from verified files. ValueError when another kind of learner wrote it."""
        from safetensors.torch import load_file

        source = Path(folder)
        state = check_learner(source, self.run)
        for name, engine in self._engines.items():
            engine.load(str(source / name))
        self._kl = KLController(state["kl_coef"], self.run.algorithm.kl_target)
        if state["reference"] and self.run.model.lora is not None:
            self._reference = self._policy.forward_without_adapters
        elif state["reference"]:
            target = self._make_reference()
            assert self._reference_module is not None
            tensors = load_file(str(source / _REFERENCE))
            zero.copy_parameters([tensors[n] for n, _ in self._reference_module.named_parameters()], target)
        _set_random_state(load_file(str(source / f"random-{self.rank}.safetensors")), self._ranks.device)

    def export(self, folder: str) -> None:
        """The policy as a Hugging Face folder, once `written`; by rank 0."""
        from huggingface_hub import save_torch_state_dict

        tensors = {name: t.cpu().clone() for name, t in self._weights() if self.rank == 0}
        if self.rank == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._disk.put(partial(save_torch_state_dict, tensors, folder, metadata={"format": "pt"}))
            self._lm.config.save_pretrained(folder)
            self._lm.generation_config.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)

    def written(self, wait: bool) -> bool:
        """Whether what was saved and exported is on the disk. Raises OSError when it cannot be."""
        return self._disk.written(wait=wait)

    # -- weights on their way to the engines --------------------------------------------------------------------------

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor). A tied output layer is not among them: it is the embedding."""
        return zero.named_tensors(self._lm)

    def weight_metadata(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return zero.metadata(self._lm)

    def connect_weights(self, init_info: dict[str, Any]) -> None:
        self._sender.connect(init_info)

    def send_weights(self, bucket_mib: int) -> None:
        self._sender.send(self._weights(), bucket_mib)

    @torch.no_grad()
    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probs at temperature 1 of tokens 1.. given those before them: len(token_ids) - 1 floats."""
        ids = torch.tensor([list(token_ids)], device=self._ranks.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        return self._policy.forward(ids, mask, 1.0)[0][0, 1:].tolist()

    def param_hash(self) -> str:
        """sha256 over the policy's parameters: equal on all ranks, and before and after a resume."""
        return _sha256(self._weights())

    def trained_hash(self) -> str:
        """sha256 over the parameters of everything that is trained, the critic's too."""
        return _sha256(chain.from_iterable(zero.named_tensors(engine.module) for engine in self._engines.values()))


def _sha256(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
