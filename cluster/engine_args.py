"""vLLM's arguments and environment for the engines of a run."""

from typing import Any

from smartrag.choices import WeightBackend
from smartrag.config import Cluster, Model

_CPU_BATCH_TOKENS = 8192  # prompt tokens of one engine step


def engine_args(model: Model, cluster: Cluster, path: str, engines: int = 1) -> dict[str, Any]:
    """vLLM's arguments for the policy in the folder `path`; `cluster.engine.engine_args` has the last word.

    `engines` of one worker divide its GPU's memory.
    """
    engine = cluster.engine
    args: dict[str, Any] = {
        "model": path,
        "dtype": model.precision.value,
        "max_model_len": model.context_tokens,
        "max_num_seqs": engine.concurrency,
        "tensor_parallel_size": engine.tensor_parallel,
        "skip_tokenizer_init": True,  # nothing is decoded here
        "generation_config": "vllm",  # the model's own defaults (top-p, ...) would bend the sampling distribution
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from: after temperature
        "enable_prefix_caching": True,  # turn k + 1 begins with turn k
        "weight_transfer_config": {"backend": cluster.weights.value},
        "disable_log_stats": True,
    }
    if engine.tensor_parallel > 1:
        args["distributed_executor_backend"] = "mp"  # in a placement group vLLM would take Ray and refuse the bundle
    elif cluster.weights is WeightBackend.gloo:
        # By its short name vLLM would make `mp` of this on a CPU, for an OpenMP environment of the worker's own. But
        # `engine_env` sets that, and one more process would only take its time to start and 750 MB.
        args["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    if engine.kv_cache_gib is not None:
        args["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    if cluster.weights is WeightBackend.gloo:
        args |= {
            "enforce_eager": True,
            "block_size": 32,  # the CPU default of 128 leaves short prefixes uncached
            # A prompt cut in two makes vLLM wind a request's seeded generator back, which a CPU generator cannot: the
            # engine dies of it. So prompts are taken whole, as many at a time as fit.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, model.context_tokens),
        }
    if cluster.colocated:
        args["enable_sleep_mode"] = True
    args |= engine.engine_args
    if engines > 1 and "gpu_memory_utilization" in args:
        args["gpu_memory_utilization"] /= engines
    return args


def engine_env(cluster: Cluster) -> dict[str, str]:
    """Environment of a process that holds an engine; must stand before vLLM is imported there."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cluster.weights is WeightBackend.gloo:
        env |= {
            "OMP_NUM_THREADS": str(cluster.engine.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Ray and the container decide which cores
            "VLLM_CPU_CI_ENV": "1",  # no warm-up
            "TORCH_COMPILE_DISABLE": "1",  # eager vLLM still compiles a sampler helper: 25 s and a C++ compiler
        }
    if cluster.weights is WeightBackend.ipc:
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA handles cross from one of our actors to another
    return env
