"""The words that a setting of `config.py` may be."""

from enum import StrEnum


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class WeightBackend(StrEnum):
    gloo = "gloo"  # CPU to CPU
    nccl = "nccl"  # GPU to GPU
    ipc = "ipc"  # learner and engine share a GPU


class Role(StrEnum):
    """What the policy does, see `roles.py`."""

    decision = "decision"  # to search or to answer
    query = "query"  # what to ask the retriever
    answer = "answer"  # what to answer


class Advantage(StrEnum):
    gae = "gae"  # token by token, with a critic
    turn_gae = "turn_gae"  # turn by turn, with a critic: every token of a turn shares its credit
    reinforce_pp = "reinforce_pp"  # the return that follows a token, without a critic
    rloo = "rloo"  # an episode's return against that of the other samples of its question
    grpo = "grpo"  # the same in units of their spread

    @property
    def has_critic(self) -> bool:
        return self in (Advantage.gae, Advantage.turn_gae)

    @property
    def compares_samples(self) -> bool:
        return self in (Advantage.rloo, Advantage.grpo)


class Critic(StrEnum):
    """Where the values of an estimator with a critic come from."""

    separate = "separate"  # a second model with a learning rate and an optimiser of its own
    shared = "shared"  # a value head on the policy's trunk: half the memory, and one forward pass for both


class KL(StrEnum):
    """Estimators of the KL to the reference, see `loss.py`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLIn(StrEnum):
    reward = "reward"  # a cost of each token, which advantages then carry
    loss = "loss"  # a term of the policy's loss, with a gradient of its own


class Mean(StrEnum):
    """What the policy loss is a mean over."""

    token = "token"  # all policy tokens, each as much as any other
    role = "role"  # the roles, of the mean over each one's tokens: a decision of one token counts as much as an answer


class Importance(StrEnum):
    """Truncated importance sampling of the learner against the engine that sampled."""

    none = "none"
    token = "token"  # each token by its own ratio
    sequence = "sequence"  # all tokens of an episode by the product of its ratios


class Judge(StrEnum):
    """Who scores an answer."""

    gold = "gold"  # EM and F1 against the gold answers
    agreement = "agreement"  # the other samples of the same question: no gold answers needed
    endpoint = "endpoint"  # a language model behind a chat endpoint: no gold answers needed
    function = "function"  # a function of your own, reward.function


class Stemmer(StrEnum):
    """How the words of passages and queries are cut before they are compared."""

    porter = "porter"
    krovetz = "krovetz"
    none = "none"


class Corpus(StrEnum):
    """What a search shows, see `passages.py`."""

    real = "real"  # the passages it found
    useless = "useless"  # others in their place, dealt by a hash


class WandbMode(StrEnum):
    auto = "auto"  # online when there is a login and the server answers, else offline
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Teacher(StrEnum):
    """Who shows the warm-up's moves."""

    gold = "gold"  # the data set: gold answers, and queries where it has them
    policy = "policy"  # the policy itself: those of its sampled moves that turned out right (rejection sampling)
    endpoint = "endpoint"  # a larger model behind a chat endpoint


class Part(StrEnum):
    """What launch/bench.py measures."""

    rollout = "rollout"
    retrieval = "retrieval"
    corpora = "corpora"
    learner = "learner"
    push = "push"
    step = "step"
    authors = "authors"
    trl = "trl"
