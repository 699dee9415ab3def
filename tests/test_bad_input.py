"""What a run reads and is told is checked before anything starts: one clear message, an exit code, no traceback."""

import json
from pathlib import Path

import pytest

from cluster.searcher import check_searcher
from smartrag.compose import ConfigError, load
from smartrag.data.load import load as load_data
from smartrag.own_reward import check as check_reward
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
    own,
    parquet,
    passage,
    passages,
    place,
    remove,
    resume,
    row,
    saved,
    table,
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
    ("train.mirror=/shared/runs", "train.mirror=/shared/runs is no URI; e.g. s3://BUCKET/runs"),
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
    line("behind by what", "asha=speed", "asha=speed: one of reward, em, f1 is due, or null", "sweep"),
    line("no grace", "asha=em train.steps=5", "grace must be at least 1 and less than train.steps=5, got 10", "sweep"),
    line("no figures", "gates=/nowhere.json", "gates=/nowhere.json: ", "sweep"),
    line("nothing to measure", "only=[] repeats=0", "repeats must be between 1 and 1000, got 0", "bench"),
    line(
        "a mistyped part",
        "only=[lerner]",
        "Invalid value 'lerner', expected one of [rollout, retrieval, corpora, learner, push, step, authors, trl]",
        "bench",
    ),
    line(
        "a policy of no known shape",
        "policies=[8B]",
        "there is no '8B'; there are 0.5B, 1.5B, 1.7B, 7B, 32B",
        "capacity",
    ),
    line("no chip", "flops=0", "flops must be above 0, got 0", "capacity"),
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
    row("both answers", ROW | {"id": "x", "answer": "a"}, 'fields "answers" and "answer"; leave one'),
    row("a blank single answer", {"id": "x", "question": "q?", "answer": " "}, '"answer" must be a non-blank string'),
    row(
        "a number for an answer", {"id": "x", "question": "q?", "answer": 7}, '"answer" must be a list of at least one'
    ),
    row("empty answers", ROW | {"id": "x", "answers": []}, "must be a list of at least one non-blank string, got []"),
    row("a text of answers", ROW | {"id": "x", "answers": "Oslo"}, 'field "answers" must be a list'),
    row("a blank answer", ROW | {"id": "x", "answers": ["a", " "]}, 'field "answers[1]" must be a non-blank string'),
    row("a number answered", ROW | {"id": "x", "answers": [7]}, 'field "answers[0]" must be a non-blank string, got 7'),
    row("null for an id", ROW | {"id": None}, 'field "id" must be a non-blank string, got null'),
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

QUESTIONS = [
    table("not there", None, "{}/q.csv: no such file; give .jsonl, .csv, .tsv, .parquet, a folder that"),
    table("a spreadsheet", b"PK", "{}/q.xlsx: is a .xlsx file; give .jsonl, .csv, .tsv, .parquet", file="q.xlsx"),
    table("a bare folder", lambda p: p.mkdir(), "{}/q: is a folder that datasets.save_to_disk did not write", file="q"),
    table("nothing in it", "", "{}/q.csv: is empty; the first line must name the columns"),
    table("a header alone", "question,answer\n", "{}/q.csv: of 0 question(s) none comes to train and dev and test"),
    table(
        "no question", "id,query,answer\n1,q,a\n", '{}/q.csv:1: no column "question" (found: "id", "query", "answer")'
    ),
    table("no answer", "question\nq\n", '{}/q.csv:1: no column "answers" or "answer" (found: "question"); name one so'),
    table("two kinds of answers", "question,answer,answers\n", 'columns "answer" and "answers"; leave one'),
    table("a column twice", "question,answer,Question \n", '{}/q.csv:1: column "question" stands twice; leave one'),
    table("semicolons", "question;answer\nq;a\n", "separated by semicolons; save it with commas, or with tabs as .tsv"),
    table("a cell less", "id,question,answer\n1,q\n", '{}/q.csv:2: has 2 cell(s), the header has 3 (begins "1"); put'),
    table("a comma too many", "question,answer\nq,Oslo, Norway\n", "{}/q.csv:2: has 3 cell(s), the header has 2"),
    table(
        "a line break before it",
        'question,answer\n"q\n1",a\nr,\n',
        '{}/q.csv:4: field "answer" must be a non-blank string, got ""',
    ),
    table(
        "a blank question", "question,answer\n ,a\n", '{}/q.csv:2: field "question" must be a non-blank string, got " "'
    ),
    table("a blank id", "id,question,answer\n,q,a\n", '{}/q.csv:2: field "id" must be a non-blank string, got ""'),
    table("an id twice", "id,question,answer\n1,q,a\n1,r,a\n", '{}/q.csv:3: field "id" "1" is already that of line 2'),
    table("a question twice", "question,answer\nq,a\n Q,b\n", "{}/q.csv:3: is the same as {}/q.csv:2; leave one of"),
    table("answers that are no list", "question,answers\nq,Oslo|Bergen\n", 'got "Oslo|Bergen"; a single one may stand'),
    table(
        "an empty list", "question,answers\nq,[]\n", 'field "answers" must be a list of at least one non-blank string'
    ),
    table("a list of numbers", "question,answers\nq,[7]\n", 'field "answers[0]" must be a non-blank string, got 7'),
    table(
        "a word for a number",
        "question,answer,popularity\nq,a,high\n",
        '"meta.popularity" must be a number, got "high"',
    ),
    table("no number", "question,answer,popularity\nq,a,NaN\n", '"meta.popularity" must be a number, got "NaN"'),
    table(
        "queries as text", "question,answer,queries\nq,a,Oslo\n", '"meta.queries" must be a list of non-blank strings'
    ),
    table("meta as text", "question,answer,meta\nq,a,x\n", 'field "meta" must be an object, got "x"'),
    table("another split", "question,answer,split\nq,a,tset\n", '"split" must be one of train, dev, validation, valid'),
    table("a blank split", "question,answer,split\nq,a,\n", '{}/q.csv:2: field "split" must be one of'),
    table(
        "a split in some rows",
        '{"question": "q", "answer": "a", "split": "dev"}\n{"question": "r", "answer": "a"}\n',
        '{}/q.jsonl:2: field "split" is missing, which other rows have; add it, or leave it out of all',
        file="q.jsonl",
    ),
    table(
        "no test", "question,answer,split\nq,a,train\nr,a,dev\n", 'none comes to test by their "split"; each of train'
    ),
    table("too few to divide", "question,answer\nq,a\n", "of 1 question(s) none comes to"),
    table(
        "tested and trained on",
        "question,answer,split\nid q,a,train\nQ,a,dev\nid  Q,b,test\n".replace("id q", "q x").replace("id  Q", "Q  X"),
        "is the same as {}/q.csv:2",
    ),
    table(
        "tested and trained on under two ids",
        "id,question,answer,split\n1,q x,a,train\n2,r,a,dev\n3,Q  X,b,test\n",
        '{}/q.csv:4: the same question is in q.csv:2 (ids "3" and "1": "Q  X"); remove it from one of them',
    ),
    table(
        "Latin-1", "question,answer\ncafé,a\n".encode("latin-1"), "{}/q.csv:2: not valid UTF-8 at byte 3 of the line"
    ),
    table(
        "UTF-16", "question,answer\nq,a\n".encode("utf-16"), "{}/q.csv:1: is UTF-16; save the file as UTF-8 (in Excel"
    ),
    table(
        "an open quote", 'question,answer\n"q,a\nr,a\n', "{}/q.csv:2: not valid CSV (unexpected end of data) in the row"
    ),
    table("text behind a quote", 'question,answer\n"q"x,a\n', "{}/q.csv:2: not valid CSV (',' expected after '\"')"),
    table("old line ends", "question,answer\rq,a\r", "{}/q.csv:1: not valid CSV (new-line character seen in unquoted"),
    table("NUL", "question,answer\nq\0,a\n", "NUL character at position 1; remove it"),
    table("a huge cell", f"question,answer\n{'q' * 1_000_001},a\n", "close its quotes, or cut the cell to 1,000,000"),
    table("commas in .tsv", "question,answer\nq,a\n", '{}/q.tsv:1: no column "question"', file="q.tsv"),
    table("no Parquet", b"PAR1", "{}/q.parquet: cannot be read as Parquet behind row 0 (", file="q.parquet"),
    table(
        "Parquet without answers",
        parquet(question=["q"]),
        '{}/q.parquet: no column "answers" or "answer"',
        file="q.parquet",
    ),
    table(
        "null in Parquet",
        parquet(question=["q", None], answer=["a", "b"]),
        '{}/q.parquet:2: field "question" must be a non-blank string, got null',
        file="q.parquet",
    ),
    table(
        "an empty list in Parquet",
        parquet(id=[1, 2], question=["q", "r"], answers=[["a"], []]),
        '{}/q.parquet:2: field "answers" must be a list of at least one non-blank string, got []',
        file="q.parquet",
    ),
    table(
        "a damaged data set",
        lambda p: (p.mkdir(), (p / "dataset_info.json").write_text("{"))[0],
        "{}/q: cannot be read as a saved data set (",
        file="q",
    ),
    line("a hub address without a name", "data=files data.questions=", "data.questions must not be empty"),
    own(
        "half a hub address",
        lambda tmp: load_data(load(["data=files", "data.questions=hf://squad"]).data, tmp),
        "hf://squad: is not of the form hf://OWNER/NAME or hf://OWNER/NAME/CONFIG",
    ),
    data(
        "two forms of one split", write("dev.csv", "question,answer\nq,a\n"), "dev.jsonl and dev.csv are the same part"
    ),
    data(
        "two names of dev",
        write("validation.jsonl", json.dumps(ROW)),
        "dev.jsonl and validation.jsonl are the same part",
    ),
    passages("no text", "id,title\np,x\n", '{}/p.csv:1: no column "contents" or "text" (found: "id", "title")'),
    passages("blank text", "id,title,text\np,x, \n", '{}/p.csv:2: field "text" must be a non-blank string, got " "'),
    passages("a blank id", "id,text\n,x\n", '{}/p.csv:2: field "id" must be a non-blank string, got ""'),
    passages("an id twice", "id,text\np,x\nq,y\np,z\n", '{}/p.csv:4: field "id" "p" is already that of line 2'),
    passages("none", "id,text\n", "{}/p.csv: no passages; write one"),
    passages("not there", None, "{}/p.csv: no such file; give .jsonl, .csv"),
    passages(
        "a title that is a number", parquet(title=[7], text=["x"]), 'field "title" must be a non-blank', "p.parquet"
    ),
    passages(
        "null", parquet(id=["a", None], text=["x", "y"]), '{}/p.parquet:2: field "id" must be a non-bl', "p.parquet"
    ),
    passages(
        "text without ids", '{"title": "x"}\n', '{}/p.jsonl:1: field "contents" is missing (found: title)', "p.jsonl"
    ),
]

OWN = [
    line("a function without its judge", "reward.function=m:f", "reward.judge=function and reward.function=package"),
    line("a judge without its function", "reward.judge=function", "reward.judge=function and reward.function=package"),
    line("a bare name", "reward.judge=function reward.function=contains", "package.module:name, got 'contains'"),
    line("a call", ["reward.function=os.system('x')"], "cannot be read"),
    line("another judge", "reward.judge=functoin", "expected one of [gold, agreement, endpoint, function]"),
    line("files without a file", "data=files", "data.questions=... must be given"),
    line("a file of no set", "data.questions=q.csv", "data.questions and data.corpus are of data=files; choose that"),
    line("files in a mix", "+data.mix.files=1", "data.mix holds `files`, so data.questions must name a file"),
    line(
        "a mistyped searcher", "retriever.searcher=bm26", "must be bm25, dense, http or package.module:name of your own"
    ),
    line(
        "dense alone", "retriever.searcher=dense", "retriever.searcher=dense and a retriever.dense go together: both or"
    ),
    line("dense without an encoder", "retriever=dense", "retriever.dense.encoder=... must be given"),
    line("an encoder nowhere", "retriever=dense retriever.dense.encoder=", "retriever.dense.encoder must not be empty"),
    line(
        "no tokens",
        "retriever=dense retriever.dense.encoder=x retriever.dense.max_tokens=1",
        "must be between 2 and 65536",
    ),
    line("no address", "retriever=http", "retriever.http.url=... must be given"),
    line("no URL", "retriever=http retriever.http.url=here", "retriever.http.url must be http://HOST[:PORT]/..."),
    line(
        "a password",
        "retriever=http retriever.http.url=http://me:pass@h/x",
        "without a password in it, got 'h/x'",
    ),
    line(
        "a key for its name",
        "retriever=http retriever.http.url=http://h/ retriever.http.key_variable=sk-12",
        "retriever.http.key_variable must be the NAME of the environment variable that holds the key",
    ),
    line(
        "an index beside a service",
        "retriever=http retriever.http.url=http://h/ retriever.index=x",
        "retriever.index is of no use to retriever.searcher=http",
    ),
    line(
        "less time than attempts take",
        "retriever=http retriever.http.url=http://h/ retriever.timeout_s=20",
        "come to 56 s in all, above retriever.timeout_s=20; raise that or lower those",
    ),
    line(
        "a share of a service's passages",
        "retriever=http retriever.http.url=http://h/ retriever.corpus_share=0.5",
        "which retriever.searcher=http does not; use real and 1",
    ),
    own(
        "no such module", lambda _: check_reward("nowhere:f"), "reward.function=nowhere:f: there is no module 'nowhere'"
    ),
    own(
        "no such function", lambda _: check_reward("tests.encoders:no"), "has no 'no'; it has tokenizer, bert, letters"
    ),
    own(
        "no function",
        lambda _: check_reward("tests.bad_inputs:ROW"),
        "is a dict, which cannot be called; name a function",
    ),
    own(
        "two arguments",
        lambda _: check_reward("os.path:relpath"),
        "reward.function=os.path:relpath: failed on Answered(",
    ),
    own("no argument", lambda _: check_reward("os:getcwd"), "must take one argument, an Answered (too many positional"),
    own("no share", lambda _: check_reward("builtins:repr"), "must return a finite number from 0 to 1, got "),
    own(
        "no such searcher",
        lambda _: check_searcher(load(["retriever.searcher=tests.encoders:no"]).retriever),
        "retriever.searcher=tests.encoders:no: tests.encoders (",
    ),
    own(
        "a searcher of one argument",
        lambda _: check_searcher(load(["retriever.searcher=tests.encoders:letters"]).retriever),
        "must take two arguments, settings and place (too many positional arguments)",
    ),
    own(
        "no encoder",
        lambda tmp: check_searcher(load(["retriever=dense", f"retriever.dense.encoder={tmp}/e5"]).retriever),
        "{}/e5 does not exist; give the folder of a Hugging Face encoder",
    ),
    own(
        "nobody at home",
        lambda _: check_searcher(
            load(["retriever=http", "retriever.http.url=http://127.0.0.1:9/x", "retriever.http.attempts=1"]).retriever
        ),
        "retriever.http.url does not serve: http://127.0.0.1:9/x: Failed to establish a new connection: "
        "Connection refused. See",
    ),
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

BAD = [
    *(line(words, words, said) for words, said in WORDS),
    *COMMANDS,
    *SAVED,
    *ROWS,
    *QUESTIONS,
    *OWN,
    *MODELS,
    *FOLDERS,
]


@pytest.mark.fault("C1", "something that is read is wrong")
@pytest.mark.parametrize("bad", BAD, ids=[bad.name.encode("ascii", "replace").decode() for bad in BAD])
def test_a_bad_input_is_refused_with_what_to_do(bad: Bad, tmp_path: Path) -> None:
    message = bad.refused(tmp_path)
    assert bad.said.replace("{}", str(tmp_path)) in message
    for jargon in ("Traceback", "object_type", "full_key", "hydra.cc", "[Errno"):
        assert jargon not in message


def test_there_are_many() -> None:
    assert len(BAD) >= 260
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
