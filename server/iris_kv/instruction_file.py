"""What an instruction file is: finding, reading and judging it, its fields and its sections.

The front matter is that of https://agentskills.io/specification; the body is served byte for byte.
"""

from __future__ import annotations

import os
import re
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, cast

import yaml

from iris_kv.errors import InvalidArgumentError
from iris_kv.markdown import NEWLINE, blocks
from iris_kv.model import Frozen

Origin = Literal["shipped", "folder", "workspace"]
Stamp = tuple[int, int, int]
"""What a changed file does not share with its old self: time of writing (ns), size, inode."""

MAX_FILE_BYTES: Final = 1_000_000
MAX_BODY_TOKENS: Final = 3_500
MAX_BODY_LINES: Final = 500
MAX_REFERENCES_CHARS: Final = 4_096
UNSERVED_FILE: Final = "readme.md"
"""In any case of letters, it is about the folder, and no instruction."""

_MAX_FRONT_BYTES: Final = 16 * 1024
_MAX_FRONT_DEPTH: Final = 20
_MAX_SHOWN_CHARS: Final = 64
_SETTLED_NS: Final = 2_000_000_000
"""Two writes within one tick of a file system's clock leave one stamp; FAT and HFS+ tick in seconds."""
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

_FRONT: Final = re.compile(rb"(?:\xef\xbb\xbf)?---\r?\n(.*?)^---(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_UNSEEN: Final = re.compile("[\x00\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
UNSEEN_RULE: Final = "NUL, tag characters and bidi overrides hide text from a person's eyes"
_YAML: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_compose = cast("Callable[[str, type], yaml.Node | None]", yaml.compose)
_events = cast("Callable[[str, type], Iterator[yaml.Event]]", yaml.parse)
_RULES: Final[Mapping[str, tuple[str, str]]] = {
    "name": (r"[a-z0-9-]{1,64}", "it is 1 to 64 lower-case letters, digits and hyphens"),
    "description": (r".{1,1024}", "it is 1 to 1,024 characters: what the instruction does and when to use it"),
    "version": (r".{0,64}", "it is a string of at most 64 characters"),
    "metadata": (r"", "it is a mapping of strings"),
    "metadata.version": (r".{0,64}", "it is a string of at most 64 characters"),
    "metadata.essentials": (r".{0,1024}", "it is a string of at most 1,024 characters"),
    "metadata.order": (
        r"[0-9]{0,9}",
        "it is a string of digits: where the instruction stands among those of its origin",
    ),
    "metadata.references": (
        rf".{{0,{MAX_REFERENCES_CHARS}}}",
        f"it is the tags that the text refers to, joined by commas: at most {MAX_REFERENCES_CHARS:,} characters",
    ),
}


class InstructionSource(Frozen):
    """A folder of flat `*.md` files and `<name>/SKILL.md` folders."""

    folder: Path
    origin: Origin
    label: str
    """What people and models see in place of the path: `shipped`, `.iris/instructions` ..."""


class LibraryError(Frozen):
    """What is wrong with one file, or with a whole source."""

    file: str
    """The source's label, and the file's name in it."""
    problem: str
    """What is wrong; what is allowed; what to do next."""


class Section(Frozen):
    """A part of a body, from its heading to the next heading of the same or a higher level."""

    slug: str
    """Lower-case words joined by `-`; unique within the file."""
    title: str
    """The heading's Markdown on one line, without its marks."""
    level: int
    """1 to 6."""
    start: int
    """Where the heading's line starts in the body, in bytes."""
    end: int
    """Where the next such heading's line starts, or the body ends, in bytes."""


@dataclass(frozen=True)
class CheckedFile:
    """A file's parts, or all that is wrong with it."""

    name: str
    """The file's name in its source: `x.md` or `x/SKILL.md`."""
    file: str
    """The source's label and the name, as they are shown."""
    raw: bytes = b""
    body: bytes = b""
    fields: Mapping[str, str] | None = None
    """`tag`, `name`, `description`, `essentials`, `version`, `order` and `references`; None if there are problems."""
    problems: tuple[LibraryError, ...] = ()
    stamp: Stamp | None = None
    """None: the file may change without a change of its stamp."""


def scan_source(source: InstructionSource) -> tuple[Mapping[str, Stamp | None] | None, tuple[LibraryError, ...]]:
    """Return a source's files with their stamps, in name order, and what is wrong with the source.

    A stamp of None means that the file cannot be looked at, None for all that the folder cannot now.
    """
    try:
        return dict(_scan(source)), ()
    except (FileNotFoundError, NotADirectoryError):
        missing = _problem(source.label, "does not exist", "a source is a folder of *.md files", "create the folder")
        return {}, () if source.origin == "workspace" else _told(source.label, missing)
    except (OSError, InvalidArgumentError) as error:
        return None if isinstance(error, OSError) else {}, _told(source.label, error)


def load_file(source: InstructionSource, name: str) -> CheckedFile:
    """Return a file of a source, read and checked; what cannot be read is a problem like any other."""
    file = shown_file(source, name)
    try:
        raw, stamp = _read(source.folder / name, source.folder, file)
    except (OSError, InvalidArgumentError) as error:
        return CheckedFile(name, file, problems=_told(file, error))
    return check_file(source, name, raw, stamp)


def check_file(source: InstructionSource, name: str, raw: bytes, stamp: Stamp | None = None) -> CheckedFile:
    """Return a file's parts, or everything that is wrong with its bytes."""
    file = shown_file(source, name)
    try:
        front, body = _cut(raw, file)
        nodes = _front_nodes(front, file)
    except InvalidArgumentError as error:
        return CheckedFile(name, file, raw, problems=_told(file, error), stamp=stamp)
    problems = [*_field_problems(nodes, file), *_text_problems(raw, body, file)]
    if problems:
        return CheckedFile(name, file, raw, problems=_told(file, *problems), stamp=stamp)
    return CheckedFile(name, file, raw, body, _fields(nodes), stamp=stamp)


def shown_file(source: InstructionSource, name: str) -> str:
    """Return the source's label and a file's name in it, with nothing in the name that could deceive."""
    return f"{source.label}/{printable(name)}"


def printable(text: str) -> str:
    """Return a text with `?` for what a terminal would obey or not show: controls, bidi marks, half surrogates."""
    return "".join(one if one.isprintable() else "?" for one in text)


def same_tag(tag: str, file: str, first: str) -> LibraryError:
    """Return the error for a second file with one tag in a source."""
    return LibraryError(file=file, problem=f"its tag {tag!r} is that of {first}; a source has a tag once; rename one")


def is_front_matter(text: bytes) -> bool:
    """Tell whether what stands between two lines `---` at the top of a file is a small YAML mapping."""
    try:
        return len(text) <= _MAX_FRONT_BYTES and _mapping(text.decode()) is not None
    except yaml.YAMLError:
        return False


def find_sections(body: bytes) -> Iterator[Section]:
    """Yield the sections of a Markdown text in order: 2 ms for 8 KB, some seconds for 1 MB."""
    heads = [(block.title, block.level, block.start) for block in blocks(body) if block.kind == "heading"]
    nearest = [len(body)] * 7
    ends: list[int] = []
    for _, level, start in reversed(heads):
        ends.append(min(nearest[: level + 1]))
        nearest[level] = start
    for (title, level, start), slug, end in zip(heads, _slugs(head[0] for head in heads), reversed(ends), strict=True):
        yield Section(slug=slug, title=title, level=level, start=start, end=end)


def slug_of(title: str) -> str:
    """Return a title's slug: its letters, digits and marks in lower case, words joined by `-`."""
    text = re.sub("['\u2019]", "", re.sub(r"\]\([^)\s]*\)", "]", title)).lower()
    kept = (one if one.isalnum() or unicodedata.category(one).startswith("M") else " " for one in text)
    return "-".join("".join(kept).split()) or "section"


def hidden_character(text: str) -> str | None:
    """Return what hides text from a person's eyes, such as `line 3 has U+202E`; None: nothing does."""
    found = None if text.isascii() and "\0" not in text else _UNSEEN.search(text)
    return found and f"line {text.count(chr(10), 0, found.start()) + 1:,} has U+{ord(found[0]):04X}"


def over_limits(body: bytes, tokens: int) -> Iterator[str]:
    """Yield by how much a body is over the limits that shipped instructions keep."""
    lines = len(NEWLINE.findall(body)) + (not body.endswith((b"\n", b"\r")))
    for size, limit, unit in ((tokens, MAX_BODY_TOKENS, "tokens"), (lines, MAX_BODY_LINES, "lines")):
        if size > limit:
            yield f"the body has {size:,} {unit}; at most {limit:,} are read well; move a part to a file of its own"


def flaws(name: str, instruction_name: str, version: str) -> Iterator[str]:
    """Yield what is allowed in a file but should be mended; `name` is the file's name in its source."""
    path = PurePosixPath(name)
    if path.name == "SKILL.md" and path.parent.name and path.parent.name != instruction_name:
        yield f"the folder is {path.parent.name!r} and the name {instruction_name!r}; give both one name"
    if not version:
        yield 'there is no version; add metadata with version: "1.0.0"'


def _scan(source: InstructionSource) -> Iterator[tuple[str, Stamp | None]]:
    if source.origin == "workspace":
        _real_path(source.folder, source.folder.absolute().parent.parent, source.label)
    with os.scandir(source.folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() == UNSERVED_FILE:
            continue
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir()):
            if os.path.lexists(f"{entry.path}/SKILL.md"):
                yield f"{entry.name}/SKILL.md", _stamp(f"{entry.path}/SKILL.md")
        elif entry.name.endswith(".md"):
            yield entry.name, _stamp(entry.path)


def _stamp(file: str | int) -> Stamp | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path, root: Path, file: str) -> tuple[bytes, Stamp | None]:
    opened = os.open(_real_path(path, root, file), _OPEN_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise _problem(file, "is not a regular file", "only regular files are read", "put a file in its place")
        stamp = _stamp(opened)
        with open(opened, "rb", closefd=False) as reader:
            raw = reader.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(opened)
    if len(raw) > MAX_FILE_BYTES:
        raise _problem(file, "is too large", f"at most {MAX_FILE_BYTES:,} bytes are read", "split it")
    settled = stamp is not None and abs(time.time_ns() - stamp[0]) > _SETTLED_NS
    return raw, stamp if settled else None


def _real_path(path: Path, root: Path, file: str) -> str:
    real = os.path.realpath(path, strict=True)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise _problem(file, "is a link that leads out of its folder", "links stay inside", "put a copy in its place")
    return real


def _cut(raw: bytes, file: str) -> tuple[str, bytes]:
    """Return the front matter's text, with a newline for its first line so that an error counts right, and the body."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise _problem(file, f"byte {error.start:,} is not UTF-8", "a file is UTF-8", "convert it") from None
    match = _FRONT.match(raw)
    if match is None:
        allowed = "a file starts with the lines ---, name: ..., description: ... and ---"
        raise _problem(file, "has no front matter", allowed, "write these lines at its top")
    if len(match[1]) > _MAX_FRONT_BYTES:
        raise _problem(file, "has long front matter", f"it is at most {_MAX_FRONT_BYTES:,} bytes", "shorten it")
    return "\n" + match[1].decode(), raw[match.end() :]


def _front_nodes(front: str, file: str) -> dict[str, yaml.Node]:
    """Return the nodes by dotted name. Nothing is constructed: no value can fail, grow or run anything."""
    rule, fix = "the front matter is lines such as name: web-development", "mend it"
    try:
        root = _mapping(front)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split()).replace(' "<unicode string>",', "")
        raise _problem(file, f"has front matter that is not YAML: {why}", rule, fix) from None
    if root is None:
        raise _problem(file, "has front matter that is not a mapping", rule, fix)
    nodes: dict[str, yaml.Node] = {}
    for name, node in _pairs(root):
        if name in nodes:
            raise _problem(file, f"field {name!r} is there twice", "each field is given once", "delete one")
        nodes[name] = node
    return nodes


def _mapping(front: str) -> yaml.MappingNode | None:
    _check_depth(front)
    root = _compose(front, _YAML)
    return root if isinstance(root, yaml.MappingNode) else None


def _check_depth(front: str) -> None:
    """Refuse what would overflow the C stack of the composer, which recurses."""
    depth = 0
    for event in _events(front, _YAML):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_FRONT_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")


def _pairs(mapping: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, yaml.Node]]:
    for key, value in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            yield prefix + key.value, value
            if prefix + key.value == "metadata" and isinstance(value, yaml.MappingNode):
                yield from _pairs(value, "metadata.")


def _field_problems(nodes: Mapping[str, yaml.Node], file: str) -> Iterator[InvalidArgumentError]:
    for name in dict.fromkeys(("name", "description", *nodes)):
        pattern, rule = _RULES.get(name, (r".*", "the values of metadata are strings"))
        if name in _RULES or name.startswith("metadata."):
            wrong, fix = _wrong(name, nodes.get(name), pattern)
            if wrong:
                yield _problem(file, f"field {name!r} {wrong}", rule, fix)


def _wrong(name: str, node: yaml.Node | None, pattern: str) -> tuple[str, str]:
    """Return what is wrong with a field and the fix, both empty if it is right."""
    key = name.rpartition(".")[2]
    mend = f"mend {key} in the front matter"
    if node is None:
        return "is missing", f"add a line {key}: ... to the front matter"
    kind = node.tag.rpartition(":")[2]
    if name == "metadata" and isinstance(node, yaml.MappingNode):
        return "", ""
    if name == "metadata" or not isinstance(node, yaml.ScalarNode):
        return f"is a YAML {kind}", mend
    if node.tag != "tag:yaml.org,2002:str":
        return f"is a YAML {kind}", f'put it in quotes: {key}: "{node.value[:_MAX_SHOWN_CHARS]}"'
    value = " ".join(node.value.split())
    if _UNSEEN.search(value) or re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        return "has an escaped unseen character", f"take it out; {UNSEEN_RULE}"
    right = re.fullmatch(pattern, value) is not None
    slug = re.sub(r"[^a-z0-9]+", "-", value.casefold())[:64].strip("-")
    fix = f"write name: {slug}" if name == "name" and slug else mend
    shown = f"is {value!r}" if len(value) <= _MAX_SHOWN_CHARS else f"has {len(value):,} characters"
    return ("", "") if right else (shown, fix)


def _fields(nodes: Mapping[str, yaml.Node]) -> dict[str, str]:
    texts = {key: " ".join(node.value.split()) for key, node in nodes.items() if isinstance(node, yaml.ScalarNode)}
    return {
        "tag": texts["name"].replace("-", "_"),
        "name": texts["name"],
        "description": texts["description"],
        "essentials": texts.get("metadata.essentials", ""),
        "version": texts.get("metadata.version", texts.get("version", "")),
        "order": texts.get("metadata.order", ""),
        "references": texts.get("metadata.references", ""),
    }


def _text_problems(raw: bytes, body: bytes, file: str) -> Iterator[InvalidArgumentError]:
    hidden = hidden_character(raw.decode())
    if hidden is not None:
        yield _problem(file, hidden, UNSEEN_RULE, "take it out")
    if not body.strip():
        yield _problem(file, "has an empty body", "instructions follow the front matter", "write them")


def _slugs(titles: Iterable[str]) -> Iterator[str]:
    taken: set[str] = set()
    copies: Counter[str] = Counter()
    for title in titles:
        base = slug = slug_of(title)
        while slug in taken:
            copies[base] += 1
            slug = f"{base}-{copies[base] + 1}"
        taken.add(slug)
        yield slug


def _problem(file: str, wrong: str, allowed: str, todo: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{file}: {wrong}", allowed, todo)


def _told(file: str, *errors: InvalidArgumentError | OSError) -> tuple[LibraryError, ...]:
    fix = "you must be able to read it; mend its permissions or its link"
    texts = (f"cannot be read: {each.strerror}; {fix}" if isinstance(each, OSError) else str(each) for each in errors)
    head = f"{InvalidArgumentError.code}: {file}: "
    return tuple(LibraryError(file=file, problem=text.removeprefix(head)) for text in texts)
