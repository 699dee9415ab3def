"""What vLLM is told, per cluster profile. Needs no vLLM."""

import dataclasses
import subprocess
import sys

import pytest

from cluster.engine_args import engine_args, engine_env
from smartrag import ROOT
from smartrag.compose import load


def test_sampling_is_plain_and_its_logprobs_are_asked_for() -> None:
    run = load([])
    args = engine_args(run.model, run.cluster, "folder")
    assert args["model"] == "folder"
    assert args["max_model_len"] == run.model.context_tokens
    assert args["generation_config"] == "vllm"
    assert args["logprobs_mode"] == "processed_logprobs"


def test_cpu_engines_use_gloo_and_nothing_of_a_gpu() -> None:
    run = load(["cluster=local_cpu", "cluster.engine.kv_cache_gib=0.5"])
    args, env = engine_args(run.model, run.cluster, "folder"), engine_env(run.cluster)
    assert args["weight_transfer_config"] == {"backend": "gloo"}
    assert args["kv_cache_memory_bytes"] == 1 << 29
    assert args["enforce_eager"]
    assert "enable_sleep_mode" not in args
    assert env["OMP_NUM_THREADS"] == str(run.cluster.engine.threads)


def test_one_gpu_sleeps_and_takes_weights_by_ipc() -> None:
    run = load(["cluster=one_gpu"])
    args, env = engine_args(run.model, run.cluster, "folder"), engine_env(run.cluster)
    assert args["weight_transfer_config"] == {"backend": "ipc"}
    assert args["enable_sleep_mode"]
    assert args["gpu_memory_utilization"] == run.cluster.engine.engine_args["gpu_memory_utilization"]
    assert "enforce_eager" not in args
    assert env["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"


@pytest.mark.parametrize(("tensor_parallel", "backend"), [(1, None), (4, "mp")])
def test_tensor_parallel_inside_a_placement_group(tensor_parallel: int, backend: str | None) -> None:
    run = load(["cluster=multi_node"])
    engine = dataclasses.replace(run.cluster.engine, tensor_parallel=tensor_parallel)
    args = engine_args(run.model, dataclasses.replace(run.cluster, engine=engine), "folder")
    assert args.get("distributed_executor_backend") == backend


def test_the_config_has_the_last_word() -> None:
    run = load([])
    engine = dataclasses.replace(run.cluster.engine, engine_args={"block_size": 16, "quantization": "fp8"})
    args = engine_args(run.model, dataclasses.replace(run.cluster, engine=engine), "folder")
    assert (args["block_size"], args["quantization"]) == (16, "fp8")


def test_engines_of_one_worker_share_its_gpu() -> None:
    run = load(["cluster=node"])
    whole = run.cluster.engine.engine_args["gpu_memory_utilization"]
    assert engine_args(run.model, run.cluster, "folder", 2)["gpu_memory_utilization"] == whole / 2
    assert run.cluster.engine.engine_args["gpu_memory_utilization"] == whole
    assert engine_args(load([]).model, load([]).cluster, "folder", 2) == engine_args(
        load([]).model, load([]).cluster, "folder"
    )


def test_vllm_is_not_imported_for_it() -> None:
    code = "import sys, cluster.engine; assert not {'vllm', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)
