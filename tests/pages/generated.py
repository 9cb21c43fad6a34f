"""Pages whose tables are generated, and whose text has no number of its own."""

from __future__ import annotations

import re

from tests._helpers import ROOT


def numbers(text):
    """Return the numbers of a text, with their signs where they have one."""
    return set(re.findall(r"(?:(?<![\w-])[+-])?(?<![\w.])(?<!\w-)\d+(?:,\d{3})*(?:\.\d+)?", text.replace(",\n", ", ")))


def with_or_without_sign(found):
    return found | {number.lstrip("+-") for number in found}


def unknown_numbers(page, tables, known):
    """Yield numbers of the text that are in no table, in no record that their paragraph links, and not known otherwise.

    ``known`` are words with numbers, such as an arXiv number; each has to be in the text.
    """
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    generated = re.findall(r"^<!-- table: \S+ -->\n\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert len(generated) == len(tables)
    of_tables = with_or_without_sign(numbers("".join(generated)))
    prose = re.sub(r"^(<!-- table: \S+ -->\n\n)(?:\|.*\n)+", "", text, flags=re.MULTILINE)
    assert [words for words in known if words not in prose] == []
    for paragraph in re.split(r"\n\n|\n(?=- |\|)", prose):
        linked = [ROOT / "docs" / path for path in re.findall(r"\]\((\.\./benchmarks/[^)#]+\.md)\)", paragraph)]
        of_records = with_or_without_sign(numbers("".join(path.read_text(encoding="utf-8") for path in linked)))
        plain = re.sub(r"\]\([^)]*\)|`[^`]*`", " ", paragraph)
        for words in sorted(known, key=len, reverse=True):
            plain = plain.replace(words, " ")
        for number in numbers(plain.replace("CIFAR-100", "")) - of_tables - of_records:
            yield f"{number}: {paragraph}"
