"""`export`: a trained policy as a Hugging Face folder that stands alone: weights, tokenizer, generation settings, card.

The weights are copied, not written anew, and the copies compared with the checkpoint's manifest. The folder appears
whole or not at all. Nothing of it is pickled, and nothing in it can run when it is loaded.
"""

import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from cluster.checkpoint import copy_part, step_of
from cluster.trained import Trained, find
from smartrag.commands import Export
from smartrag.compose import ConfigError
from smartrag.exits import BAD_INPUT, NOTHING_TO_RESUME, USAGE_ERROR
from smartrag.model import load_tokenizer, pad_id
from smartrag.model_folder import code
from smartrag.prompt import Budget, Prompt
from smartrag.report.card import Exported, render
from smartrag.report.record import read

_CARD = "README.md"
_KINDS = {".safetensors", ".json", ".jinja", ".txt", ".model"}  # .model: sentencepiece, a protocol buffer
_PROBE = "Which country is Oslo in?"


def export(settings: Export) -> int:
    """Makes the folder `settings.out`; returns the exit code."""
    try:
        trained = find(settings.run, ())
        out = _export(trained, settings)
    except ConfigError as error:
        return _refused(error, USAGE_ERROR)
    except FileNotFoundError as error:
        return _refused(error, NOTHING_TO_RESUME)
    except (ValueError, OSError) as error:  # damaged, in the way, no space
        return _refused(error, BAD_INPUT)
    print(f"{out}: the policy of {trained.weights}; {out / _CARD} says how to use it")
    return 0


def _refused(error: Exception, code: int) -> int:
    print(error, file=sys.stderr)
    return code


def _export(trained: Trained, settings: Export) -> Path:
    if trained.weights is None or trained.home is None:
        raise FileNotFoundError(f"run={settings.run} is not the folder of a run (no config.yaml)")
    out = Path(settings.out).expanduser().resolve()
    _check_place(out, trained.home, overwrite=settings.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    try:
        draft.mkdir()
        _fill(draft, trained, trained.weights.parent, trained.home, out.name)
        _publish(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def _check_place(out: Path, home: Path, *, overwrite: bool) -> None:
    """Raises ValueError when something is there that must not be lost, or when a checkpoint would be changed."""
    checkpoints = (home / "checkpoints").resolve()
    if checkpoints in (out, *out.parents):
        raise ValueError(f"out={out} is among the checkpoints of the run, which must stay as they are; name another")
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"out={out} is a file; name a folder")
    held = [path for path in out.rglob("*") if not path.is_dir() or path.is_symlink()]
    if held and not overwrite:
        raise ValueError(f"out={out} is there already; name another folder, or say overwrite=true to replace it")
    foreign = sorted(str(path.relative_to(out)) for path in held if not _is_exported(path))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(f"out={out} holds what no export writes ({', '.join(foreign[:3])}{more}); name another folder")


def _is_exported(path: Path) -> bool:
    return path.name == _CARD or (path.suffix in _KINDS and not path.name.startswith("."))


def _fill(draft: Path, trained: Trained, checkpoint: Path, home: Path, name: str) -> None:
    """Everything but the name. Raises ValueError when the policy is not what can be exported."""
    run = trained.run
    hashes = copy_part(checkpoint, "policy", draft)
    _check_kinds(draft, checkpoint / "policy")
    tokenizer = load_tokenizer(draft)
    budget = Budget(run.model.context_tokens, run.model.new_tokens, run.model.passage_tokens)
    prompt = Prompt(tokenizer, run.model.instruction, budget)
    _check_template(tokenizer, prompt, run.algorithm.quota)
    _generation(prompt, run.model.new_tokens).save_pretrained(draft)
    weights = {file: digest for file, digest in hashes.items() if file.endswith(".safetensors")}
    exported = Exported(name, checkpoint.name, step_of(checkpoint), weights)
    (draft / _CARD).write_text(render(read(home), run, prompt, exported), encoding="utf-8")


def _check_kinds(draft: Path, weights: Path) -> None:
    """Raises ValueError for a file that could run when loaded, and for a model that asks for code of its own."""
    names = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
    if strange := [name for name in names if Path(name).suffix not in _KINDS]:
        raise ValueError(f"{weights} holds {', '.join(strange)}; only safetensors, JSON and text are exported")
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{weights} holds no *.safetensors, so there is nothing to export")
    if problems := code(draft):
        raise ValueError(f"{weights}: {'; '.join(problems)}")


def _check_template(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, quota: int) -> None:
    """Raises ValueError when the chat template would open a conversation otherwise than in training."""
    opening: Any = [{"role": "user", "content": prompt.opening(_PROBE, quota)}]
    rendered = tokenizer.apply_chat_template(opening, add_generation_prompt=True, return_dict=False)
    if list(rendered) != list(prompt.question(_PROBE, quota)):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} renders a lone question otherwise than one with a reply "
            "behind it, and it was trained on the latter; such a policy cannot be asked through its template"
        )


def _generation(prompt: Prompt, new_tokens: int) -> GenerationConfig:
    """As the policy was evaluated. Settings of the model it came from, such as a repetition penalty, are left out."""
    tokenizer = prompt.tokenizer
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=prompt.end_id,
        pad_token_id=pad_id(tokenizer),
    )


def _publish(draft: Path, out: Path) -> None:
    """By rename. What stood there goes after the new folder has its name."""
    if not out.exists():
        draft.rename(out)
        return
    old = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    out.rename(old)
    draft.rename(out)
    shutil.rmtree(old)
