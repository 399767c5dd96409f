"""Office work whose answers repeat their questions more or less, in seeded variants: the load of `speculation`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

NAMES: Final = ("total", "amount", "price", "count", "result", "value", "entry", "record", "weight", "score")
PEOPLE: Final = ("Anna Weber", "Li Ming", "Omar Haddad", "Chen Yu", "Sofia Rossi", "Jan Novak")
PLACES: Final = ("Berlin", "Hangzhou", "Oslo", "Chengdu", "Porto", "Lyon")
GOODS: Final = ("samovars", "tea glasses", "trays", "sugar bowls", "kettles", "tea towels")


FILE: Final = """\
def sum_ITEM(rows, RATE):
    OLD = 0
    for row in rows:
        OLD = OLD + row["ITEM"] * row["RATE"]
        if row.get("ITEM_limit"):
            OLD = min(OLD, row["ITEM_limit"])
    return round(OLD * (1 + RATE), 2)


def report(orders, RATE):
    lines = []
    for order in orders:
        OLD = sum_ITEM(order["rows"], RATE)
        lines.append(f"{order}: {OLD}")
    OLD = sum(float(line.split(": ")[1]) for line in lines)
    lines.append(f"all: {OLD}")
    return "\\n".join(lines)


def main():
    orders = load("orders.json")
    OLD = report(orders, PERCENT)
    print(OLD)
    return 0
"""
MAIL: Final = """\
Dear TO,
thank you for you're order of NUMBER GOODS. We has sent them to PLACE on monday, together with the SAMPLES that you \
asked for. The invoice are attached. Please tell us if something is missing, so that we can sends it with the next \
delivery in week WEEK.
Kind regards
FROM"""
CHINESE_MAIL: Final = """\
TO您好：
感谢您订购NUMBER套茶具。我们以经在星期DAY把货物发往PLACE，预计WEEK天后送达。发票随货物一起寄出，请查收。\
如果缺少什么东西，请及时告诉我们，我们会在下一次发货中补上。
祝工作顺力
销售部"""


def _filled(text: str, **words: object) -> str:
    for name, word in words.items():
        text = text.replace(name, str(word))
    return text


def code(source: random.Random) -> str:
    """Rename a variable of a file."""
    old, new, item, rate = source.sample(NAMES, 4)
    file = _filled(FILE, OLD=old, ITEM=item, RATE=rate, PERCENT=source.randint(1, 9) / 100)
    question = f"Rename the variable `{old}` to `{new}` in this file. Give back the whole file, nothing else."
    return f"{question}\n```python\n{file}```"


def _mail(source: random.Random) -> str:
    to, sender = source.sample(PEOPLE, 2)
    goods, samples = source.sample(GOODS, 2)
    words: dict[str, object] = {"TO": to, "FROM": sender, "GOODS": goods, "SAMPLES": samples}
    return _filled(MAIL, **words, NUMBER=source.randint(2, 90), PLACE=source.choice(PLACES), WEEK=source.randint(2, 50))


def mail(source: random.Random) -> str:
    """Correct a mail."""
    return f"Correct the mistakes in this mail and change nothing else. Give back only the mail.\n\n{_mail(source)}"


def chinese_mail(source: random.Random) -> str:
    """Correct a Chinese mail."""
    to, place = source.choice(("王芳", "李明", "陈宇", "赵磊")), source.choice(("杭州", "成都", "青岛", "西安"))
    text = _filled(
        CHINESE_MAIL,
        TO=to,
        PLACE=place,
        NUMBER=source.randint(2, 90),
        DAY=source.choice("一二三四五"),
        WEEK=source.randint(2, 9),
    )
    return f"请改正这封邮件中的错别字，其他内容保持不变，只输出邮件正文。\n\n{text}"


def extraction(source: random.Random) -> str:
    """Extract orders into JSON."""
    rows = [
        f"{source.choice(PEOPLE)} from {source.choice(PLACES)} ordered {source.randint(1, 99)} {source.choice(GOODS)}."
        for _ in range(6)
    ]
    fields = '"customer", "city", "quantity", "product"'
    return f"Write these orders as a JSON array of objects with the keys {fields}. Only JSON.\n\n" + "\n".join(rows)


def summary(source: random.Random) -> str:
    """Summarize three mails."""
    mails = "\n\n".join(_mail(source) for _ in range(3))
    return f"Summarize these mails in five sentences.\n\n{mails}"


def prose(source: random.Random) -> str:
    """Write freely."""
    return f"Write a story about {source.choice(GOODS)} on a journey from {source.choice(PLACES)} by train."


TASKS: Final[dict[str, Callable[[random.Random], str]]] = {
    "code": code,
    "mail": mail,
    "Chinese mail": chinese_mail,
    "extraction": extraction,
    "summary": summary,
    "prose": prose,
}
EDITS: Final = ("code", "mail", "Chinese mail")
"""The tasks whose answers repeat nearly all of their questions."""
