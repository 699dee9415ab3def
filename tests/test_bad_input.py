"""What a run reads and is told is checked before anything starts: one clear message, an exit code, no traceback."""

import json
from pathlib import Path

import pytest

from smartrag.compose import ConfigError, load
from tests.bad_inputs import (
    ROW,
    Bad,
    change_json,
    data,
    fit,
    index,
    line,
    model,
    nothing,
    passage,
    place,
    remove,
    resume,
    row,
    saved,
    write,
)

# What is wrong with the words of launch/train.py: they are the name of the case, too.
WORDS = [
    ("trian.steps=3", "did you mean 'train.steps'?"),
    ("+train.stesp=3", "did you mean 'train.steps'?"),
    ("+experiment=quickstrat", "did you mean 'quickstart'?"),
    ("+experiment=nothing_like_it", "there are: hotpotqa, popqa, quickstart"),
    ("model=tny", "no model is called 'tny'; did you mean 'tiny'?"),
    ("algorithm.gamma=high", "could not be converted to Float"),
    ("cluster.weights=carrier_pigeon", "expected one of [gloo, nccl, ipc]"),
    ("retriever.k=0", "retriever.k must be between 1 and 100, got 0"),
    ("algorithm.gamma=1.5", "algorithm.gamma must be between 0 and 1, got 1.5"),
    ("reward.retrieval=nan", "reward.retrieval must be a finite number, got nan"),
    ("algorithm.temperature=nan", "algorithm.temperature must be between"),
    ("algorithm.advantage=rloo", "leaves nothing to compare; use 2 or more"),
    ("algorithm=grpo algorithm.critic=shared", "has no critic; leave it at separate"),
    ("algorithm.critic=both", "expected one of [separate, shared]"),
    ("algorithm.kl_in=loss", "has a gradient of mean zero"),
    ("algorithm.samples=7", "train.episodes=64 must be a multiple of algorithm.samples=7"),
    ("train.episodes=65", "must be a multiple of learner.ranks x algorithm.minibatches"),
    ("model.context_tokens=30", "leaves no room for a question"),
    ("reward=agreement", "algorithm.samples=1 must be 2 or more"),
    ("reward.judge=endpoint", "reward.judge=endpoint and a reward.endpoint go together"),
    ("reward=judge reward.endpoint.max_void_share=0.99", "could leave 1 episodes for"),
    ("reward=judge reward.endpoint.attempts=0", "reward.endpoint.attempts must be between 1 and 100, got 0"),
    ("reward=judge reward.endpoint.modle=x", "did you mean 'reward.endpoint.model'?"),
    ("reward.budget.target=0.4", "sets a group that is null here; choose an option that has it first"),
    ("reward=budget reward.retrieval=-3", "must be between -reward.budget.max_price=-2 and 0"),
    ("reward=budget reward.budget.target=1.5", "is above algorithm.quota=1"),
    ("reward=budget reward.gated=true algorithm.quota=4", "lower the price to 0.5"),
    ("reward=gated reward.retrieval=-2.5", "worth less than a wrong one; lower the price to 2"),
    ("reward.exact_match=0 reward.f1=0", "no answer would be worth anything"),
    ("cluster.weights=nccl", "does not fit the devices; use gloo"),
    ("learner.gpus=1", "both or neither"),
    ("train.max_staleness=-1", "train.max_staleness must be between 0 and 64, got -1"),
    ("cluster=one_gpu train.max_staleness=1", "engines sleep while the learner works, so nothing can be begun ahead"),
    ("model.lora={rank:8,alpha:16}", "model.lora.targets=... must be given"),
    ("model.lora={rank:0,alpha:16,targets:[q_proj]}", "model.lora.rank must be between 1 and 4096, got 0"),
    ("model.lora={rank:8,alpha:16,targets:[]}", "model.lora.targets names no layer"),
    ("model.lora={rnk:8}", "Key 'rnk' not in 'Lora'"),
    ("data=folder", "data.source=... must be given"),
    ("data=[popqa,hotpotq]", "no data is called 'hotpotq'; did you mean 'hotpotqa'?"),
    ("data.mix.popqa=2", "Could not override 'data.mix.popqa'"),
    ("+data.mix.popq=2", "no data set is called 'popq'; there are: world, "),
    ("data.mix.world=0", "data.mix.world must be a finite number above 0, got 0"),
    ("data=[folder,popqa]", "so data.source must be a folder, got 'popqa'"),
    ("train.quotas=[1,17]", "train.quotas holds 17; each must be between 0 and 16"),
    ("train.ks=[0]", "train.ks holds 0; each must be between 1 and 100"),
    ("algorithm.trains=[]", "must name one or more of decision, query, answer, each once"),
    ("algorithm.trains=[query,query]", "must name one or more of decision, query, answer, each once"),
    ("algorithm.trains=[judge]", "judge"),
    ("algorithm.trains=[query] warmup.steps=5", "play decision and answer, so they must be warmed up already"),
    ("algorithm.trains=[decision,query] algorithm.quota=0", "learns nothing where every answer is forced"),
    ("warmup.share=1", "warmup.share must be between"),
    ("warmup.teacher=nobody", "expected one of [gold, policy, endpoint]"),
    ("steps", "is not of the form name=value"),
    ("foo", "'foo' is not of the form name=value"),
    ("=3", "'=3' is not of the form name=value"),
    ("--foo=3", "there is no setting '--foo'"),
    ("~seed=0", "nothing can be taken out of a run"),
    ("seed='", "seed=': cannot be read (token recognition error"),
    ("seed={", "close what is open, and quote a text"),
    ("model.path=caf\udce9", "is not valid UTF-8 at character 14; write it in UTF-8"),
    ("retriever.k=-1", "retriever.k must be between 1 and 100, got -1"),
    ("retriever.k=2.5", "retriever.k=2.5: Value '2.5' of type 'float' could not be converted to Integer"),
    ("retriever.k=[1,2]", "retriever.k=[1,2]: Value '[1, 2]' of type 'list' could not be converted to Integer"),
    ("retriever.k=null", "retriever.k=null: a value is due, null is none"),
    ("retriever.k=", "retriever.k=: Value '' of type 'str' could not be converted to Integer"),
    ("train.quotas=1", "a list is due; write train.quotas=[1]"),
    ("seed=1,2", "seed=1,2: one value is due; a list is [1,2]"),
    ("seed=-1", "seed must be between 0 and 2147483647, got -1"),
    ("algorithm.quota=-1", "algorithm.quota must be between 0 and 16, got -1"),
    (
        "reward.retrieval=0.2",
        "reward.retrieval is added to the reward, so a cost is 0 or less, got 0.2; give it a minus",
    ),
    ("reward.format_error=1", "reward.format_error is added to the reward"),
    ("reward.truncated=inf", "reward.truncated must be a finite number, got inf"),
    ("reward.exact_match=-1", "reward.exact_match must be between 0 and 1000, got -1"),
    ("learner.learning_rate=-1e-5", "learner.learning_rate must be between 0 and 1, got -1e-05"),
    ("model.new_tokens=100", "leaves no room for a question beside two generations of model.new_tokens=100; raise"),
    ("warmup.steps=5 warmup.batch=33", "warmup.batch=33 must be a multiple of learner.ranks=2"),
    ("warmup.steps=5 warmup.direct=0.9", "warmup.direct + warmup.search + warmup.read must be 1, got 1.56"),
    ("cluster=node learner.gpus=1.5", "learner.gpus must be between 0 and 1, got 1.5"),
    ("cluster=node cluster.engine.tensor_parallel=2", "cluster.engine.tensor_parallel=2 and cluster.engine.gpus=1"),
    ("cluster.engine.kv_cache_gib=-1", "cluster.engine.kv_cache_gib must be between 0.01 and 4096, got -1"),
    ("retriever.cpus=nan", "retriever.cpus must be between 0 and 1024, got nan"),
    ("retriever.heap=lots", "retriever.heap must be a size from 64m up, such as \"4g\", got 'lots'"),
    ("cluster.address=nonsense", "cluster.address must be auto, local or [ray://]HOST:PORT, got 'nonsense'"),
    ("reward=judge reward.endpoint.base_url=nonsense", "reward.endpoint.base_url must be http://HOST[:PORT]/..."),
    ("reward=judge reward.endpoint.key_variable=sk-12", "may be the key itself"),
    ("name=../elsewhere", "name='../elsewhere' names a folder in runs/: letters, digits"),
    ("name=", "name must not be empty; leave it out, or give it a value"),
    ("resume=", "resume must not be empty"),
    ("model.path=", "model.path must not be empty"),
    ("retriever.index=", "retriever.index must not be empty"),
    ("experiment=quickstart", "an experiment is added, +experiment=quickstart"),
    ("model=[tiny,llama2_7b]", "of several options the last would win; choose one of them"),
    ("model=tiny model=llama2_7b", "model=tiny and model=llama2_7b contradict each other; leave one of them out"),
    ("seed=1 +seed=2", "seed=1 and +seed=2 contradict each other"),
    # what would reach beyond a run
    ("+model._target_=os.system", "nothing is instantiated from a configuration, so _target_ has no place in it"),
    ("+learner.deepspeed={_target_:os.system}", "nothing is instantiated from a configuration"),
    ("hydra.launcher._target_=os.system", "nothing is instantiated from a configuration"),
    ("hydra/launcher=joblib", "Hydra's own settings stay as conf/ has them; leave it out"),
    ("+hydra.callbacks.x=y", "Hydra's own settings stay as conf/ has them"),
    ("hydra.searchpath=[file:///tmp]", "Hydra's own settings stay as conf/ has them"),
    ("name=${oc.env:WANDB_API_KEY}", "${...} is not looked up here, where it could bring a secret into config.yaml"),
    ("model.path=${eval:1+1}", "${...} is not looked up here"),
    ("+cluster.engine.engine_args.trust_remote_code=true", "would bring code into the engine that is not ours"),
    ("+cluster.engine.engine_args.load_format=pt", "load_format must be auto or safetensors, got 'pt'"),
]

COMMANDS = [
    line("no run", "", "run=... must be given: the folder of a run, or a model", "evaluate"),
    line("an empty run", "run=", "'run=' gives no value; leave it out", "evaluate"),
    line("a mistyped name", "run=x rtriever.k=3", "did you mean 'retriever.k'?", "evaluate"),
    line("a folder elsewhere", "run=x out=../y", "out must be a name without slashes, got '../y'", "evaluate"),
    line("a word for a number", "run=x samples=many", "samples=many: Value 'many' of type 'str'", "evaluate"),
    line("an open quote", ["run='x"], "run='x: cannot be read (found unexpected end of stream)", "evaluate"),
    line("a secret", "run=${oc.env:HOME}", "${...} is not looked up here", "evaluate"),
    line("two runs", "run=x run=y", "run=x and run=y contradict each other", "evaluate"),
    line("a mistyped row", "rows=[decisoin]", "rows: there is no row 'decisoin'; there are: decision, query", "ablate"),
    line("one row", "rows=all", "rows=all: a list is due; write rows=[all]", "ablate"),
    line("one seed", "seed=1", "seed=1: an ablation has several; write seeds=[...]", "ablate"),
    line("a mistyped setting", "setting=reward.retrievl values=[0]", "did you mean 'reward.retrieval'?", "sweep"),
    line(
        "values out of bounds", "setting=retriever.k values=[0,4]", "at 0: retriever.k must be between 1 and", "sweep"
    ),
    line("words for values", "values=[a,b]", "values must be numbers, got 'a', 'b'", "sweep"),
    line("an open list", "values=[0", "values=[0: cannot be read", "sweep"),
    line("no figures", "gates=/nowhere.json", "gates=/nowhere.json: ", "sweep"),
    line("nothing to measure", "only=[] repeats=0", "repeats must be between 1 and 1000, got 0", "bench"),
    line("a mistyped part", "only=[lerner]", "Invalid value 'lerner', expected one of [learner]", "bench"),
    line("a folder of configurations", "--config-dir /tmp --cfg job", "come from conf/ and name=value alone", "hydra"),
    line("a pickled job", "--experimental-rerun=job.pickle", "come from conf/ and name=value alone", "hydra"),
    line("a launcher", "--multirun hydra/launcher=joblib", "Hydra's own settings stay as conf/ has them", "hydra"),
    line("nothing said", "", "run=... must be given\nout=... must be given", "export"),
    line(
        "perhaps", "run=x out=y overwrite=perhaps", "overwrite=perhaps: Value 'perhaps' is not a valid bool", "export"
    ),
]

SAVED = [
    saved("_target_", lambda text: text + "_target_: os.system\n", "nothing is instantiated from a configuration"),
    saved(
        "_target_ where names are free",
        lambda text: text.replace("deepspeed: {}", "deepspeed: {_target_: os.system}"),
        "learner.deepspeed._target_: nothing is instantiated from a configuration",
    ),
    saved("an unknown name", lambda text: text + "foo: 1\n", "there is no setting 'foo' in this version"),
    saved("a word for a number", lambda text: text.replace("seed: 0", "seed: x"), "seed: Value 'x' of type 'str'"),
    saved("half of it", lambda text: text[:40], "is not whole: it lacks "),
    saved("nothing", lambda text: "", "is not whole: it lacks "),
    saved("a list", lambda text: "- 1\n", "holds a list, not the settings of a run"),
    saved("no YAML", lambda text: "a: [\n", "expected the node content"),
    saved("no UTF-8", lambda text: b"name: \xff\n", "can't decode byte 0xff in position 6"),
    saved("a look-up", lambda text: text.replace("custom", "${oc.env:HOME}"), "name: ${...} is not looked up"),
    saved(
        "a Python object",
        lambda text: text.replace("custom", "!!python/object/apply:os.system ['false']"),
        "could not determine a constructor for the tag",
    ),
]

ROWS = [
    row("an open string", '{"id": "x", "question": "q', "not valid JSON (Unterminated string starting at, column 25)"),
    row("not an object", ["x"], 'must be a JSON object, got ["x"]'),
    row("no JSON of others", '{"id": "x", "meta": {"popularity": NaN}}', "not valid JSON (NaN is no number of JSON)"),
    row("a field twice", '{"id": "x", "id": "y"}', 'not valid JSON (field "id" stands twice)'),
    row("no question", {"id": "x", "answers": ["a"]}, 'field "question" is missing (found: id, answers); add it'),
    row("null question", ROW | {"id": "x", "question": None}, '"question" must be a non-blank string, got null'),
    row("blank question", ROW | {"id": "x", "question": " \t"}, 'field "question" must be a non-blank string'),
    row("a number asked", ROW | {"id": "x", "question": 7}, 'field "question" must be a non-blank string, got 7'),
    row("NUL", ROW | {"id": "x", "question": "a\0b"}, "NUL character at position 1; remove it"),
    row("half a pair", ROW | {"id": "x", "question": "a\ud800"}, "half a surrogate pair at position 1, which is no"),
    row("huge", ROW | {"id": "x", "question": "a" * 1_000_001}, "1,000,001 characters, at most 1,000,000 are allowed"),
    row("no answers", {"id": "x", "question": "q?"}, 'field "answers" is missing; add it'),
    row("one answer", {"id": "x", "question": "q?", "answer": "a"}, '"answers" is missing; write "answers": ["..."]'),
    row("empty answers", ROW | {"id": "x", "answers": []}, "must be a list of at least one non-blank string, got []"),
    row("a text of answers", ROW | {"id": "x", "answers": "Oslo"}, 'field "answers" must be a list'),
    row("a blank answer", ROW | {"id": "x", "answers": ["a", " "]}, 'field "answers[1]" must be a non-blank string'),
    row("a number answered", ROW | {"id": "x", "answers": [7]}, 'field "answers[0]" must be a non-blank string, got 7'),
    row("no id", {"question": "q?", "answers": ["a"]}, 'field "id" is missing'),
    row("a number for an id", ROW | {"id": 7}, 'field "id" must be a non-blank string, got 7'),
    row("an id twice", ROW | {"id": "q0"}, 'field "id" "q0" is already that of line 1; ids must be unique'),
    row("meta no object", ROW | {"id": "x", "meta": []}, 'field "meta" must be an object, got []'),
    row(
        "a query", ROW | {"id": "x", "meta": {"queries": "Oslo"}}, '"meta.queries" must be a list of non-blank strings'
    ),
    row(
        "a word known",
        ROW | {"id": "x", "meta": {"popularity": "high"}},
        '"meta.popularity" must be a number, got "high"',
    ),
    row(
        "no UTF-8",
        b'{"id": "x", "question": "caf\xe9?", "answers": ["a"]}',
        "not valid UTF-8 at byte 28 of the line; save the file as UTF-8",
        split="dev",
    ),
    row("UTF-16", json.dumps(ROW).encode("utf-16"), "not valid UTF-8 at byte 0 of the line", split="dev"),
    row("a byte order mark", b"\xef\xbb\xbf" + json.dumps(ROW).encode(), "starts with a byte order mark", split="test"),
    row(
        "asked in train",
        ROW | {"id": "x", "question": "which country is  oslo 0 in?"},
        'the same question is in train.jsonl:1 (ids "x" and "q0": ',
        split="dev",
    ),
    data("an empty split", write("dev.jsonl", "\n\n"), "dev.jsonl: the split has no questions; write one"),
    data("no split", remove("test.jsonl"), "test.jsonl: no such file; needed is a folder with train.jsonl"),
    data("no corpus", remove("corpus.jsonl"), "corpus.jsonl: no such file; the passages to search"),
    data("a file", lambda folder: (folder.rename(folder.parent / "was"), folder.touch()), "is a file; give world, "),
    data("nothing there", lambda folder: folder.rename(folder.parent / "was"), "does not exist; give world, hotpotqa"),
    passage("no contents", {"id": "p2"}, 'field "contents" is missing (found: id); add it'),
    passage("null contents", {"id": "p2", "contents": None}, 'field "contents" must be a non-blank string, got null'),
    passage("an id twice", {"id": "p1", "contents": "x"}, 'field "id" "p1" is already that of line 1'),
    passage("NUL", {"id": "p2", "contents": "a\0"}, "NUL character"),
    passage("half a pair", {"id": "p2", "contents": "\udc00"}, "half a surrogate pair"),
    passage("half a line", "{", "not valid JSON"),
]

MODELS = [
    model("nothing there", lambda folder: f"{folder}-not", "does not exist"),
    model("a file", lambda folder: str(folder / "config.json"), "is a file; give the folder that holds config.json"),
    model("no config", remove("config.json"), "is not a model: it has no config.json"),
    model("half a config", write("config.json", '{"a'), "config.json cannot be read (Unterminated string"),
    model(
        "an encoder", change_json("config.json", architectures=["BertForMaskedLM"]), "config.json says BertForMaskedLM"
    ),
    model("two halves", change_json("config.json", is_encoder_decoder=True), "is an encoder-decoder (llama)"),
    model("no tokenizer", remove("tokenizer.json"), "it has no tokenizer (none of tokenizer.json"),
    model("no weights", remove("model.safetensors"), "it has no *.safetensors file; save it as safetensors"),
    model(
        "pickled weights",
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None,
        "no *.safetensors file, only pytorch_model.bin, which can run code when loaded",
    ),
    model(
        "cut weights", write("model.safetensors", b"\x10\0\0\0\0\0\0\0{"), "model.safetensors is damaged or cut short"
    ),
    model(
        "a shard less",
        write("model.safetensors.index.json", {"weight_map": {"a": "model-2.safetensors"}}),
        "model-2.safetensors is missing, which model.safetensors.index.json names",
    ),
    model(
        "its own code", change_json("config.json", auto_map={"AutoConfig": "x.X"}), "config.json asks for code of its"
    ),
    model(
        "its own tokenizer", change_json("tokenizer_config.json", auto_map={}), "tokenizer_config.json asks for code"
    ),
    model("a script", write("modeling.py", "x = 1"), "modeling.py is code; take a model that transformers knows"),
    fit("a long context", "model.context_tokens=1024", "it has 512 positions, model.context_tokens=1024 are more"),
    fit("another tokenizer", "seed=1", "its tokenizer has 301 tokens, its weights know 300", tokens=301),
    fit(
        "heads that do not divide",
        "cluster=node cluster.engine.tensor_parallel=4 cluster.engine.gpus=4",
        "its 6 attention heads cannot be divided over cluster.engine.tensor_parallel=4 GPUs",
    ),
    fit("no such layer", "model.lora={rank:8,alpha:8,targets:[c_attn]}", "it has no layer called c_attn (model.lora"),
]

FOLDERS = [
    resume("no such run", nothing, "no run in {}/other/latest; leave out `resume`", ["name=other"]),
    resume("no such folder", nothing, "no run in {}/nowhere; leave out `resume`", ["resume={}/nowhere"]),
    resume("no such checkpoint", nothing, "does not exist", ["resume={}/custom/latest/checkpoints/step_00000009"]),
    resume("a foreign folder", nothing, "no run in {}; leave out `resume`", ["resume={}"]),
    resume("nothing saved", lambda made: made.rename(made.parent / ".tmp-3-x"), "no checkpoint in"),
    resume("no manifest", remove("manifest.json"), "no checkpoint in"),
    resume(
        "no manifest, named",
        remove("manifest.json"),
        "is not a checkpoint of SmartRAG: it has no manifest.json",
        ["resume={}/custom/latest/checkpoints/step_00000003"],
    ),
    resume(
        "a damaged manifest",
        write("manifest.json", '{"manifest": {"format": 2}, "sha256": ""}'),
        "manifest.json is damaged (its sha256 is not the one that was written)",
        ["resume={}/custom/latest/checkpoints/step_00000003"],
    ),
    resume("a part less", remove("learner/critic/part"), "all 1 there are damaged, see the log"),
    resume("ranks", nothing, "was written with learner.ranks=2 learner.zero_stage=2", ["learner.ranks=4"]),
    resume("LoRA", nothing, "model.lora=null", ["model.lora={{rank:8,alpha:8,targets:[q_proj]}}"]),
    resume("critic", nothing, "algorithm.critic=separate; no other learner can resume it", ["algorithm.critic=shared"]),
    resume(
        "no questions",
        lambda made: (made.parents[1] / "splits.json").unlink(),
        "splits.json is missing, so the questions",
    ),
    place("runs below a file", "runs={}/runs", "is not a folder; set SMARTRAG_RUNS (or runs=) to a folder"),
    place("a cache in a file", "cache={}", "is not a folder; set SMARTRAG_CACHE (or cache=) to a folder"),
    index("not there", lambda folder: folder.rename(folder.parent / "was"), "(no such folder); build it with"),
    index("no index", remove("segments_1"), "(no segments file); build it with: python launch/index.py"),
    index("no manifest", remove("manifest.json"), "has no manifest.json; remove it and build it with"),
    index("another format", change_json("manifest.json", format=1), "its format is 1, this version reads 2"),
    index("no documents", change_json("manifest.json", rows=0), "has no documents; build it with"),
    index("a flipped bit", write("segments_1", b"lucenf"), "segments_1 is damaged (sha256 "),
    index("a foreign commit", write("segments_2", b"x"), "segments_2 is foreign; remove the folder and build it again"),
]

BAD = [*(line(words, words, said) for words, said in WORDS), *COMMANDS, *SAVED, *ROWS, *MODELS, *FOLDERS]


@pytest.mark.fault("C1", "something that is read is wrong")
@pytest.mark.parametrize("bad", BAD, ids=[bad.name.encode("ascii", "replace").decode() for bad in BAD])
def test_a_bad_input_is_refused_with_what_to_do(bad: Bad, tmp_path: Path) -> None:
    message = bad.refused(tmp_path)
    assert bad.said.replace("{}", str(tmp_path)) in message
    for jargon in ("Traceback", "object_type", "full_key", "hydra.cc", "[Errno"):
        assert jargon not in message


def test_there_are_many() -> None:
    assert len(BAD) >= 180
    assert len({bad.name for bad in BAD}) == len(BAD)


def test_all_that_is_wrong_comes_at_once() -> None:
    """Names, types and bounds; twenty of them, and a count of the others."""
    words = ["retriever.kk=3", "seed=x", "train.quotas=1", "algorithm.lam=2", "name=${oc.env:HOME}", "foo"]
    with pytest.raises(ConfigError) as caught:
        load(words)
    assert len(str(caught.value).splitlines()) == len(words)
    with pytest.raises(ConfigError) as caught:
        load([f"retriever.k{i}=1" for i in range(2, 27)])
    assert str(caught.value).splitlines()[20:] == ["... and 5 more"]
