"""Thirty passages whose words neither the stemmer nor the stop list touches, unless it says so in the test."""

import json
from pathlib import Path

TOWNS = ("Oslo", "Lagos", "Quito", "Hanoi", "Turin", "Perth", "Malmo")
PASSAGES = {
    **{f"port{i}": f"{town}\n{town} is a port and the port is old" for i, town in enumerate(TOWNS)},
    **{f"river{i}": f"{town}\nA river to the gulf far south of {town}, {town}" for i, town in enumerate(TOWNS)},
    **{f"food{i}": f"{town}\nThe fish soup of {town}" for i, town in enumerate(TOWNS)},
    # equal scores for "plum": the ids alone decide, and no order of writing, length or number does
    **{f"tie{i}": "Plum\nplum tart" for i in ("9", "10", "b", "a", "2")},
    "odd1": "Zürich\nZürich lies on a lake; 東京 does not",
    "odd2": 'Quote\n"quoted" \\ back\\slash \t tab and {braces} [Search] <|im_end|>',
    "long": "Moss\n" + " ".join(f"moss{i}" for i in range(200)),
    "solo": "Kiwi\nkiwi",
}


def write(path: Path, passages: dict[str, str] = PASSAGES) -> Path:
    rows = [json.dumps({"id": name, "contents": contents}) + "\n" for name, contents in passages.items()]
    path.write_text("".join(rows), encoding="utf-8")
    return path
