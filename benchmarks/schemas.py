"""How many real JSON schemas are accepted, and whether answers conform to them: the schemas of JSONSchemaBench.

make bench BENCH=schemas ARGS=FOLDER: FOLDER is a checkout of https://github.com/guidance-ai/jsonschemabench, whose
`maskbench/data` has the schemas with valid and invalid instances. A fixed sample of each group passes the product's own
path, as a tool without `strict` and as a strict format. For comparison, llguidance compiles the bare schema with its
own defaults. Instances are tested token by token with the embedded model's vocabulary.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any, Final

from llguidance import LLMatcher

from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.runs import percentile
from engine import Grammar, Model
from engine.constraint import Compiler
from engine.errors import EngineError
from gateway.errors import ApiError
from gateway.models.catalogue import EMBEDDED, find
from gateway.prompts.constraints import form
from gateway.protocol.tools import ErrorPaths, FunctionTool, JsonSchema, OutputConstraint, TextFormat
from gateway.protocol.values import check_values

SAMPLE: Final = 60
"""Schemas of each group; smaller groups are taken whole."""
GOAL: Final = 95.0
"""Wanted percentage of schemas that are accepted as a tool without `strict`."""
SECONDS: Final = 60.0
"""Timeout of one schema. llguidance has none."""
SOURCE: Final = "git clone --depth 1 https://github.com/guidance-ai/jsonschemabench"
_GROUP: Final = re.compile(r"[A-Za-z0-9]+(?:_(?:trivial|easy|medium|hard|ultra))?")
"""The group at the beginning of a file's name, such as `Github_easy---o10008.json` or `BFCL_java_1.json`."""
_KEYWORD: Final = re.compile(r"[^.\]]*$")
"""The last segment of a path."""


@dataclass(frozen=True)
class Outcome:
    """What became of one schema."""

    name: str
    milliseconds: tuple[float, ...] = ()
    """CPU time of the check as a tool, and as a format."""
    tool: str = ""
    """Why it was refused as a tool; empty if it was accepted."""
    ignored: Sequence[str] = ()
    """Keywords of the tool that are not enforced."""
    strict: str = ""
    """Why it was refused as a format."""
    bare: str = ""
    """Why llguidance rejects it."""
    valid: Sequence[bool] = ()
    """Whether the strict format accepts each valid instance."""
    invalid: Sequence[bool] = ()
    """Whether it accepts each invalid instance."""
    wrong: Sequence[str] = ()
    """The instances that are judged wrongly."""


def sample(folder: Path, size: int) -> dict[str, list[Path]]:
    """Return files of each group. Exits with an explanation if `folder` is not the data set."""
    files = sorted((folder / "maskbench" / "data").glob("*.json"))
    if not files:
        raise SystemExit(f"{folder} has no maskbench/data/*.json; get the data set with `{SOURCE}` and name its folder")
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if match := _GROUP.match(file.name):
            groups[match[0]].append(file)
    return {name: random.Random(name).sample(found, min(size, len(found))) for name, found in groups.items()}


class Examiner:
    """Examines one schema after the other."""

    def __init__(self, compiler: Compiler) -> None:
        """`compiler` has the vocabulary that instances are tokenized with."""
        self._compiler = compiler

    def examine(self, file: Path) -> Outcome:
        """Return what becomes of the schema in `file`."""
        case = json.loads(file.read_bytes())
        schema, tests = case["schema"], case["tests"]
        bare = LLMatcher.validate_grammar_with_warnings(json.dumps({"grammars": [{"json_schema": schema}]}))
        tool, first = _constraint(schema, as_tool=True)
        strict, second = _constraint(schema, as_tool=False)
        grammar = None if isinstance(strict, str) else strict.grammar
        judged = [] if grammar is None else [(test, self._accepts(grammar, test["data"])) for test in tests]
        return Outcome(
            name=file.name,
            milliseconds=(first, second),
            tool=tool if isinstance(tool, str) else "",
            ignored=() if isinstance(tool, str) else tool.ignored,
            strict=strict if isinstance(strict, str) else "",
            bare=bare[1][0] if bare[0] else "",
            valid=[accepted for test, accepted in judged if test["valid"]],
            invalid=[accepted for test, accepted in judged if not test["valid"]],
            wrong=[json.dumps(test) for test, accepted in judged if accepted != test["valid"]],
        )

    def _accepts(self, grammar: str, instance: Any) -> bool:
        """Return whether an answer may be `instance`."""
        try:
            constraint = self._compiler.constraint(Grammar(grammar))
            for token in self._compiler.vocabulary.tokenize(json.dumps(instance, ensure_ascii=False), special=False):
                if not constraint.allows(token):
                    return False
                constraint.accept(token)
            return any(constraint.allows(int(end)) for end in self._compiler.ends)
        except EngineError:
            return False


def _constraint(schema: Any, *, as_tool: bool) -> tuple[OutputConstraint | str, float]:
    """Return the constraint, or why the schema is refused, and the CPU time in milliseconds."""
    started = time.process_time()
    result: OutputConstraint | str
    try:
        check_values(schema, "schema")
        if as_tool:
            tool = FunctionTool(name="f", parameters=schema)
            result = form([tool], "required", TextFormat(), ErrorPaths(tool="schema"))
        else:
            result = form([], "auto", JsonSchema(name="x", schema=schema), ErrorPaths(format="schema"))
    except ApiError as error:
        result = f"{error.param or 'schema'}: {error.message}"
    return result, (time.process_time() - started) * 1e3


def outcomes(groups: Mapping[str, Sequence[Path]], seconds: float = SECONDS) -> dict[str, list[Outcome]]:
    """Examine all schemas, each in its own process, since a compilation that takes too long cannot be stopped."""
    examiner = Examiner(Compiler(Model(find(EMBEDDED).path, vocab_only=True).vocabulary))
    context = multiprocessing.get_context("fork")
    found: dict[str, list[Outcome]] = {}
    for name, files in groups.items():
        found[name] = [_examined(examiner, file, context, seconds) for file in files]
        print(f"{name}: {len(files)}", file=sys.stderr, flush=True)
    return found


def _examined(examiner: Examiner, file: Path, context: ForkContext, seconds: float) -> Outcome:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(examiner.examine(file)), daemon=True)
    process.start()
    theirs.close()
    try:
        outcome: Outcome = ours.recv() if ours.poll(seconds) else Outcome(file.name, tool="hang", strict="hang")
    except EOFError:
        outcome = Outcome(file.name, tool="crash", strict="crash")
    finally:
        process.kill()
        process.join()
        ours.close()
    return outcome


def table(found: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield (
        "| group | schemas | accepted as tool | with all keywords | as strict format | by llguidance alone "
        "| valid instances accepted | invalid ones accepted | CPU ms: median, p95, most |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, group in found.items():
        yield _row(name, group)
    yield _row("all", [outcome for group in found.values() for outcome in group])


def _row(name: str, group: Sequence[Outcome]) -> str:
    tools = [outcome for outcome in group if not outcome.tool]
    valid = [accepted for outcome in group for accepted in outcome.valid]
    invalid = [accepted for outcome in group for accepted in outcome.invalid]
    times = [ms for outcome in group for ms in outcome.milliseconds] or [0.0]
    spread = ", ".join(f"{ms:.1f}" for ms in (statistics.median(times), percentile(times, 0.95), max(times)))
    cells = (
        name, len(group), len(tools), sum(not outcome.ignored for outcome in tools),
        sum(not outcome.strict for outcome in group), sum(not outcome.bare for outcome in group),
        f"{sum(valid)} of {len(valid)}", f"{sum(invalid)} of {len(invalid)}", spread,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def keywords(reasons: Iterable[str]) -> str:
    """Return the keywords at which schemas were refused, most frequent first."""
    names = (_KEYWORD.search(reason.partition(": ")[0]) for reason in reasons if reason)
    counts = Counter(name[0] if name else "?" for name in names)
    return ", ".join(f"`{name}` {count}" for name, count in counts.most_common()) or "none"


def details(outcome: Outcome) -> Iterator[str]:
    """Yield one line for each refusal and each wrong verdict."""
    for kind, reasons in (("tool", [outcome.tool]), ("format", [outcome.strict]), ("wrong", outcome.wrong)):
        yield from (f"{outcome.name} {kind}: {reason}" for reason in reasons if reason)


def figures(found: Mapping[str, Sequence[Outcome]]) -> Iterator[Figure]:
    """Yield the figures of all groups together."""
    every = [outcome for group in found.values() for outcome in group]
    share = 100 / len(every)
    tools = sum(not outcome.tool for outcome in every) * share
    alone = sum(not outcome.bare for outcome in every) * share
    strict = sum(not outcome.strict for outcome in every) * share
    wrong = float(sum(sum(outcome.invalid) for outcome in every))
    name = f"{len(every)} schemas"
    yield Figure(benchmark="schemas", name=f"{name}: accepted as tool", values=[tools], unit="%", goal=GOAL, high=True)
    yield Figure(
        benchmark="schemas", name=f"{name}: accepted as format", values=[strict], unit="%", goal=alone, high=True
    )
    yield Figure(benchmark="schemas", name=f"{name}: invalid answers accepted", values=[wrong], unit="", goal=0)


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__)
    parser.add_argument("folder", type=Path, help="a checkout of jsonschemabench")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="schemas of each group")
    parser.add_argument("--details", action="store_true", help="print each refusal and each wrong verdict")
    options = start_benchmark(parser)
    found = outcomes(sample(options.folder, options.sample))
    every = [outcome for group in found.values() for outcome in group]
    print(*table(found), sep="\n")
    print(f"\nrefused as tool: {keywords(outcome.tool for outcome in every)}")
    print(f"not enforced in a tool: {keywords(path for outcome in every for path in outcome.ignored)}")
    print(f"refused as format: {keywords(outcome.strict for outcome in every)}")
    stricter = [f"{outcome.name} ({outcome.strict[:80]})" for outcome in every if outcome.strict and not outcome.bare]
    print(f"refused as format, but compiled by llguidance alone: {', '.join(stricter) or 'none'}\n")
    if options.details:
        print(*(line[:500] for outcome in every for line in details(outcome)), "", sep="\n")
    publish(list(figures(found)))


if __name__ == "__main__":
    main()
