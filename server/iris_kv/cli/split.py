"""The verb split: a mega prompt becomes a core and instructions, and the proof that nothing was lost."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import anyio
import typer
from anyio import to_thread

from iris_kv.cli.output import JsonOption, progress, reported, show
from iris_kv.errors import InvalidArgumentError
from iris_kv.instruction_file import printable
from iris_kv.prompts import MAX_SOURCE_BYTES
from iris_kv.split import (
    SplitReport,
    SplitVerification,
    files_of,
    manifest_of,
    plan_split,
    report_of,
    verify_split,
    write_split,
)
from iris_kv.split.plan import too_large
from iris_kv.tokens import TokenCounter

split_app = typer.Typer()

_T = TypeVar("_T")
_DAMAGED: Final = 7


@split_app.command(short_help="Turn a mega prompt into a core and instructions.")
def split(
    prompt: Annotated[Path | None, typer.Argument(help="Markdown or plain text, 1 KB to 5 MB.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; it must be new, or an unchanged split.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="The most tokens of the core with its trigger table: 3,000 without it.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="The heading of a section that stays in the core; repeatable.")
    ] = None,
    verify: Annotated[Path | None, typer.Option(help="Compare this folder with the prompt it was split from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a mega prompt into a core and instructions, byte for byte, and report what it saves."""
    with reported(as_json=as_json):
        if verify is not None:
            if prompt is not None or out is not None or keep or budget is not None:
                raise _usage("--verify with other arguments")
            _show_verification(_working("verifying", lambda: verify_split(verify)), as_json=as_json)
            return
        if prompt is None or out is None:
            raise _usage("no PROMPT" if prompt is None else "no --out")
        report = _working("splitting", lambda: _split(prompt, out, budget, keep or ()))
    show(report, _shown(_report_lines(report, out)), as_json=as_json)


def _split(prompt: Path, out: Path, budget: int | None, keep: Sequence[str]) -> SplitReport:
    counter = TokenCounter()
    plan = plan_split(_read(prompt), counter, budget=budget, keep=keep)
    manifest = manifest_of(plan, prompt.name, counter)
    shown, deferred = _tool_tokens(counter, [each.tag for each in plan.instructions])
    report = report_of(plan, manifest, counter, tool_tokens=shown, deferred_tool_tokens=deferred)
    write_split(out, list(files_of(plan, manifest)))
    return report


def _read(prompt: Path) -> bytes:
    try:
        if not prompt.is_file():
            raise InvalidArgumentError(f"{str(prompt)!r} is not a file", "a prompt is one file", "name a file")
        if prompt.stat().st_size > MAX_SOURCE_BYTES:
            raise too_large(prompt.stat().st_size)
        return prompt.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(
            f"{str(prompt)!r} cannot be read ({error.strerror})", "you must be able to read it", "mend its permissions"
        ) from None


def _tool_tokens(counter: TokenCounter, tags: Sequence[str]) -> tuple[int, int]:
    """Return what the tools cost where a client shows them, and where it defers them."""
    from iris_kv.surfaces.tools import offered, tool_tokens  # noqa: PLC0415 - loads the MCP SDK

    return tool_tokens((tool.described(tags) for tool in offered("standard")), counter)


def _working(doing: str, work: Callable[[], _T]) -> _T:
    """Return what some long work returns, and say meanwhile that it goes on."""

    async def main() -> list[_T]:
        found: list[_T] = []
        async with progress(doing):
            found.append(await to_thread.run_sync(work))
        return found

    return anyio.run(main)[0]


def _usage(given: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        given,
        "iris-kv split PROMPT.md --out DIR writes a split, iris-kv split --verify DIR checks one",
        "call it in one of the two ways",
    )


def _report_lines(report: SplitReport, out: Path) -> Iterator[str]:
    about = "" if report.exact else "~"
    coverage = 100 * report.covered_bytes / report.source_bytes
    kept = ", ".join(report.core_headings) or "what stands before the first heading"
    saved = 100 - 100 * report.standing_tokens / report.tokens_before
    yield f"before: {about}{report.tokens_before:,} tokens in every request"
    yield f"after:  {about}{report.standing_tokens:,} ({saved:.0f} % less), whatever the task:"
    yield f"  {about}{report.core_tokens:>6,}  the core alone, with its trigger table: {kept}"
    yield f"  {about}{report.tool_tokens:>6,}  tools, where the client shows them; {_deferred(report, about)}"
    yield f"  {about}{report.server_tokens:>6,}  server instructions"
    yield f"coverage: {coverage:.4g} % of {report.source_bytes:,} bytes, in the core and {len(report.pieces)} instructions"
    yield _told(report)
    for piece in report.pieces:
        long = (
            "  longer than is read well: one list, table or fence is not cut" if piece.tag in report.oversized else ""
        )
        yield f"  {about}{piece.tokens:>6,}  {piece.tag}{long}"
    if report.moved_rules:
        yield f"lines with must, never, always, required or forbidden that left the core: {len(report.moved_rules)}"
        yield from (f"  line {rule.line} -> {rule.tag}: {rule.text}" for rule in report.moved_rules)
    yield from _verdict(report, about)
    yield f"written to {out}; check it with: {shlex.join(['iris-kv', 'split', '--verify', str(out)])}"
    served = ["iris-kv", "serve", "--instructions", f"{out}/instructions", "--prompt", f"{out}/prompts/system.md"]
    yield f"serve it with: {shlex.join(served)}"


def _deferred(report: SplitReport, about: str) -> str:
    return f"where it defers them, {about}{report.deferred_standing_tokens:,} in all"


def _told(report: SplitReport) -> str:
    told, total = report.triggers, len(report.pieces)
    rest = "" if told.described == total else "; a model finds the others with list_instructions only"
    return f"triggers: {told.described} of {total} in the prompt, {told.at_the_start} in the server instructions{rest}"


def _verdict(report: SplitReport, about: str) -> Iterator[str]:
    if not report.pays:
        yield (
            f"iris-kv costs more than it saves here: the prompt has {about}{report.tokens_before:,} tokens, and under"
            f" {about}{report.break_even_tokens:,} it does not pay; keep the prompt as it is, or give a smaller --budget"
        )
        return
    yield (
        f"it breaks even at {report.break_even_reads} instructions read in one session ({about}{report.read_tokens:,}"
        f" tokens each on average); a prompt under {about}{report.break_even_tokens:,} tokens would cost more than it saves"
    )


def _show_verification(found: SplitVerification, *, as_json: bool) -> None:
    lines = [f"{found.rebuilt_bytes:,} of {found.source_bytes:,} bytes of the source are there, unchanged"]
    for finding in found.findings:
        lines.append(f"{finding.file}: {finding.problem}")
        lines += [f"  lost line {lost.line}: {lost.text}" for lost in finding.lost]
    lines += [f"note: {note}" for note in found.notes]
    lines.append("the files rebuild the source, byte for byte" if found.ok else "the files do not rebuild the source")
    show(found, _shown(lines), as_json=as_json)
    if not found.ok:
        raise SystemExit(_DAMAGED)


def _shown(lines: Iterable[str]) -> str:
    """Return lines as one text; a line of a prompt does not command the terminal."""
    return "\n".join(printable(line.expandtabs()) for line in lines)
