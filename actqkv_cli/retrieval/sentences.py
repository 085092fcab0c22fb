"""Where sentences begin and end, in any language, and lines that are none: headings, items of lists."""

import re
from dataclasses import dataclass
from unicodedata import east_asian_width

LONGEST = 330  # columns: some 60 words
_FAR = 2 * LONGEST  # characters beside a passage in which its first and last sentences must begin and end
_LONGEST_WORD = 32  # characters: scripts without spaces are cut anywhere
_WIDE_MARKS = "。！？｡．"  # no space follows these
_CANDIDATE = re.compile(rf"[.!?…؟۔।॥]+[\"'”’»)\]]*(?=\s|$)|[{_WIDE_MARKS}]+[」』”’）】]*|\s*\n\s*")
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘«/]*$")
_ABBREVIATIONS = (
    "dr mr mrs ms prof st ste rev hon capt cmdr col gen lt maj sgt sr jr fr bros messrs mt ft cf vs viz ca approx "
    "esp incl resp bzw vgl evtl ggf usw hr hrn sra dra mme mlle"
)
_NUMBERED = "no nos nr p pp vol vols fig figs ch chap sec sect art eq ed abb bd kap"
_ABBREVIATED, _BEFORE_A_NUMBER = frozenset(_ABBREVIATIONS.split()), frozenset(_NUMBERED.split())
_ITEM = re.compile(r"(?:[-*+•‣◦–—|#]|\d{1,3}[.)]|[(]?[a-zA-Z0-9][)])\s")
_CLAUSE = re.compile(r"[,;:、，；：)](?=\s)|[、，；：]|\s[–—]")
_NARROW = 40  # columns: no text is set in lines this short


@dataclass(frozen=True)
class Sentence:
    """A range of a text. Of a very long sentence a part, that may not begin or end where the sentence does."""

    start: int
    end: int
    begins: bool = True
    ends: bool = True


def columns(text: str) -> int:
    """Its length in columns of a terminal: characters of East Asian scripts are two wide, and say as much more."""
    return sum(1 + (east_asian_width(character) in "WF") for character in text)


def sentences(text: str) -> list[Sentence]:
    """All of a text, without the white space between them; very long ones in parts."""
    found, start = [], 0
    full = max(map(columns, text.splitlines()), default=0)
    for match in _CANDIDATE.finditer(text):
        if match.end() > start and _ends(text, start, match, full):
            found += _parts(text, start, match.end())
            start = match.end()
    return found + _parts(text, start, len(text))


def sentences_at(text: str, start: int, end: int) -> list[Sentence]:
    """Those that have a part in `[start, end)` of a text, of which only the surroundings are looked at."""
    first, last = whole_words(text, max(0, start - _FAR), min(len(text), end + _FAR))
    found = []
    for sentence in sentences(text[first:last]):
        begin, stop = sentence.start + first, sentence.end + first
        if begin < end and stop > start:
            begins = sentence.begins and (begin > first or start <= _FAR)
            ends = sentence.ends and (stop < last or end + _FAR >= len(text))
            found.append(Sentence(begin, stop, begins, ends))
    return found


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The range widened to whole words, without white space around it."""
    lowest, highest = max(0, start - _LONGEST_WORD), min(len(text), end + _LONGEST_WORD)
    while lowest < start < len(text) and not text[start].isspace() and not text[start - 1].isspace():
        start -= 1
    while 0 < end < highest and not text[end].isspace() and not text[end - 1].isspace():
        end += 1
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    return start, max(start, end - (len(inner) - len(inner.rstrip())))


def _ends(text: str, start: int, match: re.Match[str], full: int) -> bool:
    """Whether a sentence that began at `start` ends with a mark or the end of a line. full: columns of a full line."""
    mark, following = match[0], text[match.end() :].lstrip()
    if "\n" in mark:
        return _line_ends(text, match, full)
    if mark[0] in _WIDE_MARKS:
        return True
    if following[:1].islower():
        return False
    if mark[0] != ".":
        return True
    before = _WORD_BEFORE.findall(text, start, match.start())[0].casefold()
    if before in _BEFORE_A_NUMBER:
        return not following[:1].isdigit()
    if before.isdecimal() and len(before) < 3 and int(before) <= 31:  # 3. Oktober, or the number of a heading
        return False
    initials = before != "" and all(len(part) == 1 and part.isalpha() for part in before.split("."))
    return not initials and before not in _ABBREVIATED


def _line_ends(text: str, match: re.Match[str], full: int) -> bool:
    """A line's end ends a sentence unless the line was only full: then its next word would not have fitted in."""
    line, following = text[text.rfind("\n", 0, match.start()) + 1 : match.start()], text[match.end() :]
    if _ITEM.match(following) or line.startswith("#"):
        return True
    if not following or following[0].islower() or line.endswith((",", ";", "-")):
        return False
    if match[0].count("\n") > 1 or full < _NARROW:
        return True
    return columns(line) + 1 + columns(following[:_LONGEST_WORD].split()[0]) < 0.8 * full


def _parts(text: str, start: int, end: int) -> list[Sentence]:
    """A sentence without the white space around it; a long one cut between clauses, or else between words."""
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    end = start + len(inner.strip())
    found: list[Sentence] = []
    while start < end:
        stop = _fits(text, start, end)
        if stop < end:
            half = start + (stop - start) // 2
            clauses = [match.end() for match in _CLAUSE.finditer(text, half, stop)]
            spaces = [match.start() for match in re.finditer(r"\s", text[half:stop])]
            stop = clauses[-1] if clauses else half + spaces[-1] if spaces else stop
        found.append(Sentence(start, stop, not found, stop == end))
        start = stop + len(text[stop:end]) - len(text[stop:end].lstrip())
    return found


def _fits(text: str, start: int, end: int) -> int:
    """The end of as much as is not too long."""
    left = LONGEST
    for place in range(start, end):
        left -= columns(text[place])
        if left < 0:
            return place
    return end
