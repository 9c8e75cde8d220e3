"""Where the comments and the strings of a function are, in the languages people train on.

One regular expression a family of languages walks the text once: whatever begins first, a string or
a comment, hides the other inside it. A wrong guess stays local, since most strings end with their
line.
Records name no language; it is guessed from the shape of the code. Languages whose comments begin
with -- or % (SQL, Lua, Haskell, Erlang) are read as C, so their comments count as code.
"""

import re

# Every pattern takes time in proportion to the text, whatever it holds: a string that does not end
# is ended by its line or by the text, or given up after so many characters.
_BLOCK = r"(?P<block>/\*.*?(?:\*/|\Z))"
_DOUBLE = r'"(?:[^"\\\n]|\\.)*+"?'
_SINGLE = r"'(?:[^'\\\n]|\\.)*+'?"
_NO_SEPARATOR = r"(?<!\d)" + _SINGLE  # 1'000'000 of C++
# Java and C# text blocks, C++ raw strings, templates of JavaScript and Go. A slash right after one
# of =(,:!&|? begins a JavaScript regular expression: no operand comes before it.
_TRIPLE = r'"""(?:[^\\]|\\.)*?(?:"""|\Z)'
_OTHER_TRIPLE = _TRIPLE.replace('"', "'")
_RAW = r'R"(?P<fence>[^\s()\\]{0,16})\(.{0,2000}?\)(?P=fence)"'
_TICKS = r"`(?:[^`\\]|\\.)*+`?"
_REGEX = r"[=(,:!&|?][ \t]{0,8}/(?![*/])(?:[^/\\\n]|\\.){1,200}+/"
_CHAR = r"'(?:[^'\\\n]|\\(?:u\{[^}\n]{0,6}\}|x..|.))'"  # of Rust, where 'a alone is a lifetime


def _family(line: str, *texts: str, block: str = _BLOCK) -> re.Pattern[str]:
    # lastgroup, which readers of a match use, is the last group closed: fence closes before text.
    parts = [f"(?P<line>{line})", block, f"(?P<text>{'|'.join(texts)})"]
    return re.compile("|".join(part for part in parts if part), re.DOTALL)


FAMILIES: dict[str, re.Pattern[str]] = {
    "c": _family(r"//[^\n]*", _TRIPLE, _RAW, _DOUBLE, _NO_SEPARATOR, _TICKS, _REGEX),
    "php": _family(r"//[^\n]*|#(?!\[)[^\n]*", _DOUBLE, _SINGLE),
    "rust": _family(r"//[^\n]*", _DOUBLE, _CHAR),
    "python": _family(r"#[^\n]*", _TRIPLE, _OTHER_TRIPLE, _DOUBLE, _SINGLE, block=""),
    # In a shell, Ruby or Perl a # inside a word ($#, ${x#y}) begins nothing; quotes span lines.
    "hash": _family(r"(?<![^\s;])#[^\n]*", r'"(?:[^"\\]|\\.)*+"?', r"'[^']*'", block=""),
}

# "def f(...):" or "class X:" that ends its line, or goes on with a short statement: Scala's
# "def f(x: Int): Int = {" does not.
_PYTHON = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?def\s+\w+\s*\([^;]{0,2000}?\)\s*(?:->[^:\n]{1,200})?"
    r"|class\s+\w+(?:\([^)]{0,500}\))?)"
    r":[ \t]*(?:#[^\n]*|return\b[^\n]*|raise\b[^\n]*|pass|\.\.\.)?[ \t]*$",
    re.MULTILINE,
)
_SHELL = re.compile(r"\A#!|^[ \t]*(?:fi|done|esac|end)[ \t]*(?:$|[;|>#])", re.MULTILINE)
_PERL = re.compile(r"\bmy[ \t]*\(?[ \t]*[$@%]\w")
_PHP = re.compile(r"<\?php|function\s+&?\w*\s*\([^)]{0,500}\$\w|\$this->")
_RUST = re.compile(r"\bfn\s+\w+\s*[<(]")


def family(code: str) -> str:
    """The key of FAMILIES that fits the code best; "c" where nothing speaks for another."""
    if ("def " in code or "class " in code) and _PYTHON.search(code):
        return "python"
    if "$" in code:
        if _PHP.search(code):
            return "php"
        if _PERL.search(code):
            return "hash"
    if ("fi" in code or "done" in code or "esac" in code or "end" in code) and _SHELL.search(code):
        return "hash"
    if "fn " in code and _RUST.search(code):
        return "rust"
    return "c"


def without_comments(code: str) -> str:
    """The code with a blank in place of each comment."""
    if "//" not in code and "/*" not in code and "#" not in code:
        return code
    return FAMILIES[family(code)].sub(_keep_text, code)


def divided(code: str) -> tuple[str, str, str]:
    """The code without comments and strings, the comments, the strings."""
    comments: list[str] = []
    strings: list[str] = []
    pieces, last = [], 0
    for match in FAMILIES[family(code)].finditer(code):
        (strings if match.lastgroup == "text" else comments).append(match[0])
        pieces.append(code[last : match.start()])
        last = match.end()
    pieces.append(code[last:])
    return " ".join(pieces), "\n".join(comments), "\n".join(strings)


def _keep_text(match: re.Match[str]) -> str:
    return match[0] if match.lastgroup == "text" else " "
