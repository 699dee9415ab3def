"""Commands that Markdown tells people to type."""

import re
import shlex
from collections.abc import Iterator

_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_SCRIPT = re.compile(r"(?:\./)?launch/(\w+\.py)")
_OPERATORS = ";|&<>"


def in_blocks(text: str) -> Iterator[list[str]]:
    """The words of each simple command in blocks of Bash."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _commands(line)


def inline(text: str) -> list[str]:
    """Code between backticks, outside of blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def in_code(text: str) -> Iterator[list[str]]:
    """The words of each piece of inline code, where its quotes are closed."""
    for code in inline(text):
        if code.count('"') % 2 == code.count("'") % 2 == 0:
            yield from _commands(" ".join(code.split()))


def launches(text: str) -> list[tuple[str, list[str]]]:
    """(script of launch/, what follows it) of each command; inline code that only names a file is none."""
    found = []
    for least, some in ((1, in_blocks(text)), (2, in_code(text))):
        for words in some:
            place, script = next(((i, m[1]) for i, w in enumerate(words) if (m := _SCRIPT.fullmatch(w))), (0, ""))
            if script and len(words) >= least:
                found.append((script, words[place + 1 :]))
    return found


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(_OPERATORS):
            yield words
            words = []
        else:
            words.append(word)
    yield words
