"""Instructions as text for models: one behind its header line, the list, and what is wrong with files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from iris_kv.instruction_search import Match, best_matches
from iris_kv.instructions import Instruction, InstructionLibrary, LibraryError, Origin, section
from iris_kv.json_text import quoted
from iris_kv.model import Frozen, short_digest
from iris_kv.reading import bytes_slice
from iris_kv.slices import DEFAULT_TOKENS, Call, Slice, Wanted, bounded_lines, check_room, continuation
from iris_kv.tokens import TokenCounter

_HEADER_LEVELS: Final = 2
_HEADER_CHARS: Final = 1_500
_HEADER_SHARE: Final = 4
_QUERY_CHARS: Final = 200
_ERROR_TOKENS: Final = 30


class InstructionInfo(Frozen):
    """All that is known of an instruction but its text."""

    tag: str
    version: str
    """Empty where the file names none."""
    origin: Origin
    source: str
    """The folder that it came from, as it was named."""
    overrides: str | None
    """The version of the shipped instruction in whose place it stands; None: it overrides none."""
    digest: str
    tokens: int
    description: str
    """When to use it."""


class ServedInstructions(Frozen):
    """The instructions served now, and what is wrong with files."""

    exact: bool
    """Whether tokens are counted, and not estimated."""
    instructions: tuple[InstructionInfo, ...]
    errors: tuple[LibraryError, ...]


def served_instructions(library: InstructionLibrary, counter: TokenCounter) -> ServedInstructions:
    """Return what is known of the instructions served; for a thread, as a long text's tokens take a while."""
    return ServedInstructions(
        exact=counter.exact,
        instructions=tuple(
            InstructionInfo(
                tag=each.tag,
                version=each.version,
                origin=each.origin,
                source=each.source,
                overrides=each.overrides,
                digest=each.digest,
                tokens=each.tokens,
                description=each.description,
            )
            for each in library.instructions
        ),
        errors=library.errors,
    )


def instruction_answer(
    instruction: Instruction,
    section_name: str | None,
    wanted: Wanted,
    counter: TokenCounter,
    *,
    degraded: str | None,
) -> str:
    """Return an instruction, or one of its sections, behind one header line; for a thread, as 1 MB takes seconds.

    The offset counts bytes of the section asked for, or of the body. `degraded` says why the store
    could not answer, if it could not: the library's text is the same.

    Raises:
        NotFoundError: No such section; the text lists those there are.
        InvalidArgumentError: The offset is outside, or there is too little room.
        ConflictError: The instruction is not the version that the caller goes on with.
    """
    header = instruction_header(instruction, counter, degraded, wanted.budget // _HEADER_SHARE)
    if wanted.is_known(instruction.digest, f"the instruction {instruction.tag}"):
        return check_room(header + "\n\nunchanged", wanted.budget, counter)
    slug = None if section_name is None else section(instruction, section_name).slug
    call = Call("get_instruction", {"tag": instruction.tag, "section": slug, "max_tokens": wanted.max_tokens})

    def framed(part: Slice) -> str:
        following = call.at(part.end, instruction.digest)
        return f"{header}\n\n{part.text}{continuation(part, counter, following)}"

    return framed(bytes_slice(part_of(instruction, section_name), wanted, counter, framed))


def part_of(instruction: Instruction, section_name: str | None) -> bytes:
    """Return a section, or the whole body; for a thread, as 1 MB takes seconds to take apart.

    Raises:
        NotFoundError: No such section; the text lists those there are.
    """
    if section_name is None:
        return instruction.body
    found = section(instruction, section_name)
    return instruction.body[found.start : found.end]


def instruction_header(instruction: Instruction, counter: TokenCounter, degraded: str | None, max_tokens: int) -> str:
    """Return the one line that says what an instruction is: tag, version, origin, digest, tokens, sections.

    After `see` stand the tags that its text refers to.
    """
    slugs = ", ".join(_shown_sections(instruction))
    parts = [
        f"tag={instruction.tag}",
        f"version={instruction.version or 'none'}",
        f"origin={instruction.origin}",
        f"digest={short_digest(instruction.digest)}",
        f"tokens={'' if counter.exact else '~'}{instruction.tokens}",
    ]
    if degraded is not None:
        parts.append(f"degraded={degraded}")
    if instruction.references:
        parts.append(f"see={instruction.references.replace(' ', '')}")
    line = f"[{' '.join(parts)}" + (f" sections={slugs}" if slugs else "")
    shown = counter.fitting(line[:_HEADER_CHARS], max_tokens)
    return shown + ("…]" if len(shown) < len(line) else "]")


def _shown_sections(instruction: Instruction) -> list[str]:
    """Return the slugs of the two highest levels of headings that there are."""
    levels = sorted({section.level for section in instruction.sections})[:_HEADER_LEVELS]
    return [section.slug for section in instruction.sections if section.level in levels]


def instruction_list(library: InstructionLibrary, query: str | None, counter: TokenCounter) -> str:
    """Return the instructions that match a query best, or all: tag, tokens and when to use it, one a line.

    Behind those that a query found stand the sections that it hits. Stays within the default budget; what does not fit is left to a narrower query.
    """
    everything = library.instructions
    found = [Match(each, ()) for each in everything] if query is None else best_matches(everything, query)
    lines = [_listed(match, counter) for match in found]
    if not lines:
        lines = [f"no instruction matches {quoted((query or '')[:_QUERY_CHARS])}; leave the query out to see all"]
    errors = [f"error in {error.file}: {error.problem}" for error in library.errors]
    below = bounded_lines(errors, counter, "mend these first", DEFAULT_TOKENS // 4) if errors else ""
    above = bounded_lines(lines, counter, "search them with a query", DEFAULT_TOKENS - counter.at_most("\n" + below))
    return f"{above}\n{below}" if below else above


def _listed(match: Match, counter: TokenCounter) -> str:
    instruction, sections = match
    tokens = f"{'' if counter.exact else '~'}{instruction.tokens} tokens"
    hit = f" [sections: {', '.join(sections)}]" if sections else ""
    return f"{instruction.tag} ({tokens}): {instruction.description}{hit}"


def fitting_errors(errors: Sequence[LibraryError], counter: TokenCounter) -> tuple[LibraryError, ...]:
    """Return the first errors that leave room for the rest of an answer that says each of them twice."""
    costs = accumulate(
        counter.at_most(f"{error.file} {error.problem}")
        + counter.at_most(quoted(f"{error.file} {error.problem}"))
        + _ERROR_TOKENS
        for error in errors
    )
    return tuple(error for error, cost in zip(errors, costs, strict=True) if cost <= DEFAULT_TOKENS // 2)
