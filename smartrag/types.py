"""The data flow, one frozen dataclass an arrow, and the four Protocols through which `smartrag` meets the machines.

    question -> episode -> trajectory -> batch -> update -> weights -> (next question)

Shapes: B trajectories, T tokens of one trajectory, G tokens of one generation.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from smartrag.choices import Role

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

# ---------------------------------------------------------------------------------------------------------------------
# question


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask. Example: Question("q1", "Which country is Oslo in?", ("Norway",), {"popularity": 580000})."""

    id: str
    text: str
    answers: tuple[str, ...]  # any one of them is right; never empty
    meta: Mapping[str, Any] = field(default_factory=dict)  # what the data set knows: hops, type, popularity, ...


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of the index, `contents` as indexed. Retrieved text is untrusted: `prompt.py` cleans it."""

    id: str
    contents: str
    score: float  # the retriever's: BM25, an inner product; higher is better


# ---------------------------------------------------------------------------------------------------------------------
# what a retrieval can come to: nothing found is not the same as nothing asked


@dataclass(frozen=True, slots=True)
class Hits:
    passages: tuple[Passage, ...]  # best first, 1..k of them


@dataclass(frozen=True, slots=True)
class Empty:
    """The retriever worked and found nothing (or the query has no searchable term). A fact about the query."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The infrastructure failed. Never shown to the policy: the episode is voided and run again."""

    reason: str


Retrieved = Hits | Empty | Failed


# ---------------------------------------------------------------------------------------------------------------------
# episode


class Stop(StrEnum):
    """Why the engine stopped writing."""

    END = "end"  # the policy wrote its end-of-turn token (kept in token_ids)
    LENGTH = "length"  # the token budget ran out


@dataclass(frozen=True, slots=True)
class Completion:
    """One generation exactly as the engine returned it: token in, token out."""

    token_ids: tuple[int, ...]  # [G]
    logprobs: tuple[float, ...]  # [G] of the sampling distribution (after temperature), nats
    stop: Stop
    weight_versions: tuple[int, ...]  # [G] version of the weights that produced each token
    # Of greedy generations alone, else empty; what thresholds on uncertainty go by:
    entropies: tuple[float, ...] = ()  # [G] of the next token's distribution, nats
    margins: tuple[float, ...] = ()  # [G] between the best and the second-best token's log-probs, nats


class ActionKind(StrEnum):
    SEARCH = "search"
    ANSWER = "answer"
    MALFORMED = "malformed"  # no tag, two tags, or nothing behind the tag
    CUT = "cut"  # the token budget ran out before the end-of-turn token


@dataclass(frozen=True, slots=True)
class Action:
    """What a generation means. `text` is the query, the answer, or the raw text of a malformed one."""

    kind: ActionKind
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation with what stood before it and what came back.

    Example: context_ids "<user>Which country is Oslo in?<assistant>", completion "[Search] Oslo<end>", hits.
    """

    context_ids: tuple[int, ...]  # new tokens before the generation: template, passages, forced tag. Never trained on
    completion: Completion
    action: Action
    retrieved: Hits | Empty | None  # None unless the action is a search
    forced: bool  # the tag was not the policy's choice: it stands in context_ids
    roles: tuple[Role, ...]  # [G] which each generated token belongs to
    generation_s: float = field(default=0.0, compare=False)  # wall-clock seconds of the generation
    retrieval_s: float = field(default=0.0, compare=False)  # and of the retrieval
    began: float = field(default=0.0, compare=False)  # the worker's clock when the generation was asked for, Unix time


class End(StrEnum):
    ANSWERED = "answered"
    FORMAT_ERROR = "format_error"
    TRUNCATED = "truncated"  # ran out of tokens: the value of the last state is bootstrapped


class Gate(StrEnum):
    """Who decides whether to retrieve. The fixed gates are baselines."""

    POLICY = "policy"
    NEVER = "never"  # the answer tag is forced at once
    ALWAYS = "always"  # the search tag is forced in the first turn
    QUESTION = "question"  # the first search is forced, and its query is the question as it stands


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One slot of one step. `id` is a hash of (run seed, phase, step, slot); all sampling seeds derive from it."""

    id: str
    question: Question
    quota: int  # retrievals allowed, >= 0; after them the answer tag is forced
    k: int  # passages a retrieval brings, >= 1
    gate: Gate = Gate.POLICY
    greedy: bool = False  # evaluation: temperature 0
    gold_first: bool = False  # evaluation: the retriever is told the gold answers (`oracle.GoldFirst`)


@dataclass(frozen=True, slots=True)
class Episode:
    """One question asked, to its end."""

    id: str
    question: Question
    turns: tuple[Turn, ...]  # never empty
    end: End

    @property
    def answer(self) -> str | None:
        last = self.turns[-1].action
        return last.text if last.kind is ActionKind.ANSWER else None

    @property
    def retrievals(self) -> int:
        return sum(turn.action.kind is ActionKind.SEARCH for turn in self.turns)


# ---------------------------------------------------------------------------------------------------------------------
# trajectory


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An episode as the learner sees it: one token sequence, observations in place, rewards on tokens."""

    id: str
    token_ids: tuple[int, ...]  # [T] context and generated tokens in the order the engine saw them
    mask: tuple[bool, ...]  # [T] True on tokens the policy chose in a trained role; nothing else is trained on
    logprobs: tuple[float, ...]  # [T] engine's log-probs, 0.0 where mask is False
    rewards: tuple[float, ...]  # [T] non-zero only where mask is True
    weight_versions: tuple[int, ...]  # [T] -1 where mask is False
    truncated: bool  # bootstrap V after the last token
    group: int  # trajectories of one batch with the same number are samples of the same question
    roles: tuple[int, ...]  # [T] which of `choices.Role` chose the token, by its place there; -1 where mask is False


# ---------------------------------------------------------------------------------------------------------------------
# batch


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories as right-padded tensors. Position t of every field speaks of token t (never of t + 1)."""

    token_ids: "torch.Tensor"  # [B, T] int64, pad id beyond the end
    attention_mask: "torch.Tensor"  # [B, T] bool, True on real tokens
    mask: "torch.Tensor"  # [B, T] bool, True on policy tokens
    logprobs: "torch.Tensor"  # [B, T] float32, engine's
    rewards: "torch.Tensor"  # [B, T] float32
    truncated: "torch.Tensor"  # [B] bool
    groups: "torch.Tensor"  # [B] int64, rows with the same number are samples of the same question
    roles: "torch.Tensor"  # [B, T] int64, place of the token's role in `choices.Role`; -1 off the mask


# ---------------------------------------------------------------------------------------------------------------------
# the door


class Generate(Protocol):
    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion: ...


class Retrieve(Protocol):
    async def __call__(self, query: str, k: int) -> Retrieved: ...


class Rollout(Protocol):
    """Runs episodes to their end, in any order, each exactly once.

    Yields None now and then while none has landed, so that whoever waits can see to other things. To go on with it
    while the learner works is allowed, and several at a time are. Closing it gives up what has begun.

    Raises PoisonQuestion where one question is to blame that it cannot, something else where the infrastructure is.
    """

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Generator[Episode | None]: ...

    def rest(self) -> None:
        """The learner is about to work, until the next push: engines that share its devices give them up, and nobody
        can be brought its weights."""


class Learner(Protocol):
    """The policy, its critic and its reference under optimisation. Every method returns when all ranks are done."""

    def imitate(self, trajectories: Sequence[Trajectory], learning_rate: float) -> dict[str, float]:
        """One supervised optimiser step on the masked tokens (warm-up)."""

    def snapshot_reference(self) -> None:
        """The policy as it is now becomes the reference of the KL penalty."""

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
        """One PPO update: epochs and minibatches over these trajectories. `step` counts from 0."""

    def save(self, folder: str) -> None:
        """Takes all that training goes on from, as it is now. It is in `folder` once it is `written`."""

    def load(self, folder: str) -> None: ...

    def export(self, folder: str) -> None:
        """Takes the policy as it is now. It is a Hugging Face folder once it is `written`."""

    def written(self, *, wait: bool) -> bool:
        """Whether all is on the disk that was saved and exported."""


class Publish(Protocol):
    """Brings the learner's weights to every engine as `version` and proves they arrived. Returns seconds (in all,
    `seconds`; of the weights' way, `transfer_seconds`) and gaps."""

    def __call__(self, version: int) -> dict[str, float]: ...


class Store(Protocol):
    """Checkpoints: published whole or not at all. `state` is JSON."""

    def publish(self, step: int, state: Mapping[str, Any]) -> "AbstractContextManager[Path]": ...

    def load(self, path: "Path | None" = None) -> "tuple[Path, dict[str, Any]]":
        """Verified (folder, state) of a checkpoint; of the newest when `path` is None."""


class PoisonQuestion(RuntimeError):
    """Whatever runs an episode ends, or falls silent, when it comes to this question."""

    def __init__(self, message: str, question: str = ""):
        super().__init__(message)
        self.question = question  # its id


class EpisodeFailed(RuntimeError):
    """The infrastructure failed under an episode; it must be run again, never trained on. Picklable."""
