"""Functions of source files, compared with Python's own parser and with lists by hand."""

import ast
import asyncio.base_events
import json
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig
from data.readers.reading import ReadFacts, Reading
from trainer.prediction.extraction import MOST_BYTES, functions_of, source_text
from trainer.prediction.languages import LANGUAGES, languages_of, parser_of


def found(name: str, text: str) -> tuple[list, Counter]:
    skipped = Counter()
    return functions_of(textwrap.dedent(text), languages_of(name), skipped), skipped


def titles(name: str, text: str) -> list[str]:
    return [function.title for function in found(name, text)[0]]


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.grammar)
def test_every_grammar_is_installed_and_has_the_kinds_of_its_row(language):
    _, kinds = parser_of(language)
    words = f"{language.functions} {language.classes} {language.unnamed}".split()
    assert len(kinds) == len(words)


def test_python_functions_are_those_of_pythons_own_parser():
    files = [
        Path(module.__file__) for module in (ast, json, json.decoder, textwrap, asyncio.base_events)
    ]
    total = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        expected = sorted(
            (node.lineno, node.name, node.end_lineno) for node in nodes if isinstance(node, kinds)
        )
        functions, skipped = found(file.name, text)
        assert [(f.first_line, f.name) for f in functions] == [one[:2] for one in expected]
        assert not skipped
        lines = text.splitlines()
        for function, (first, _, last) in zip(functions, expected, strict=True):
            whole = "\n".join(lines[first - 1 : function.last_line])
            assert whole.strip() == function.code.rstrip("\n")
            # comments at the end of a body are of the function
            rest = lines[last : function.last_line]
            assert all(line.strip()[:1] in ("", "#") for line in rest)
        total += len(expected)
    assert total > 150


CASES = {
    "Shop.java": (
        """
        class Shop<T> {
          Shop(int n) { this.n = n; }
          @Override public int total(int a) { Runnable r = () -> { b(); }; return a; }
          abstract int price();
          interface Till { default int open() { return 1; } int shut(); }
          record Item(int n) { Item { if (n < 0) throw null; } }
        }
        """,
        ["Shop.Shop", "Shop.total", "Shop.Till.open", "Shop.Item.Item"],
    ),
    "old.c": (
        """
        static int *(*pick(int a))(char) { return 0; }
        int later(int a);
        int old(a) int a; { return a; }
        struct node *next(struct node *n) { return n->next; }
        """,
        ["pick", "old", "next"],
    ),
    "shop.cpp": (
        """
        namespace n { class Shop { public:
          Shop() : n(1) {}
          ~Shop() {}
          Shop(const Shop&) = default;
          int operator+(int y) { return y; }
          operator bool() { return true; }
          template <class T> T cast(T a) { return a; }
          struct Till { void open() {} };
        };
        int Shop::total(int z) { auto twice = [](int q) { return q; }; return twice(z); }
        std::string Shop::Till::name() { return ""; } }
        """,
        [
            *("Shop.Shop", "Shop.~Shop", "Shop.operator+", "Shop.operator bool", "Shop.cast"),
            *("Shop.Till.open", "Shop.total", "Shop.Till.name"),
        ],
    ),
    "shop.js": (
        """
        function outer() { each(function () { return 1; }); }
        const twice = (x) => x + x;
        module.exports.make = function () { return 2; };
        class Shop { open() {} static shut = () => 3; #till() {} }
        (function () { function inside() { return 1; } })();
        app.get("/", function (req, res) { res.send(req.q); });
        """,
        [
            *("outer", "twice", "module.exports.make", "Shop.open", "Shop.shut", "Shop.#till"),
            *("inside", "(unnamed)"),
        ],
    ),
    "shop.ts": (
        """
        abstract class Shop<T> {
          constructor(private n: number) {}
          abstract q(): void;
          m(a: T): T { return a; }
        }
        function over(x: number): string; function over(x: any): string { return "" + x; }
        namespace N { export const g = async (y?: string): Promise<void> => { await y; }; }
        """,
        ["Shop.constructor", "Shop.m", "over", "g"],
    ),
    "shop.tsx": (
        "export const App: React.FC = () => { return <b onClick={() => 1}>x</b>; };",
        ["App"],
    ),
    "shop.jsx": ("function App() { return <b>{x.map(() => 1)}</b>; }", ["App"]),
    "shop.go": (
        """
        package shop
        func total(a int) error { return nil }
        func (s *Shop[T]) Open(x int) { go func() { x++ }() }
        func asm(x int) int
        var twice = func() int { return 1 }
        """,
        ["total", "Shop.Open", "twice"],
    ),
    "shop.php": (
        """
        <b><?php function total($a) { return $a; }
        class Shop { public function open() { return 1; } abstract function shut(); }
        $twice = function ($x) use ($y) { return $x; }; trait T { function t() {} }
        """,
        ["total", "Shop.open", "twice", "T.t"],
    ),
    "shop.cs": (
        """
        namespace N { public class Shop {
          public Shop() { }
          public int M(int a) => a;
          public void V() { int L(int q) { return q; } }
          public static Shop operator+(Shop a, Shop b) { return a; }
        } interface I { void Z(); } }
        """,
        ["Shop.Shop", "Shop.M", "Shop.V", "Shop.L", "Shop.+"],
    ),
    "shop.rs": (
        """
        impl<T> Shop<T> { pub fn open(&self) -> i32 { let c = |x| x; 1 } }
        trait Till { fn shut(&self) { } fn price(&self); }
        mod m { pub async fn run() { fn inner() {} } }
        """,
        ["Shop<T>.open", "Till.shut", "run", "inner"],
    ),
    "shop.rb": (
        """
        module M
          class Shop < B
            def open(x)
              x
            end
            def self.make; 1; end
          end
        end
        """,
        ["M.Shop.open", "M.Shop.make"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_and_methods_with_a_body_are_found_with_their_class(name):
    text, expected = CASES[name]
    functions, skipped = found(name, text)
    assert [function.title for function in functions] == expected
    assert not skipped
    assert {function.language for function in functions} == {languages_of(name)[0].shown}


def test_a_name_that_is_code_keeps_its_last_200_characters():
    (name,) = titles("a.js", f"a.{'b' * 300}.c = function () {{ return 1; }};")
    assert name == f"{'b' * 198}.c"


def test_a_header_is_in_the_language_that_takes_it():
    as_c = "struct a { int n; };\nstatic inline int class_of(struct a *new) { return new->n; }\n"
    as_cpp = "namespace n { class A { public: int m() { return 1; } }; }\n"
    assert [f.language for f in found("a.h", as_c)[0]] == ["C"]
    assert [(f.language, f.title) for f in found("a.h", as_cpp)[0]] == [("C++", "A.m")]


def test_a_broken_function_is_counted_and_the_others_are_found():
    broken = """
        int before(void) { return 1; }
        int broken(void) { return 1 +; }
        int after(void) { return 3; }
        """
    functions, skipped = found("a.c", broken)
    assert [function.name for function in functions] == ["before", "after"]
    assert skipped == {
        "functions with a syntax error": 1,
        "parts of files with a syntax error": 1,
    }


def test_code_for_a_preprocessor_is_found_where_its_end_is_known():
    text = """
        static int both(int a)
        {
          EACH(x, y) { a += x; } END
          return a;
        }
        int after(void) { return 3; }
        """
    functions, skipped = found("a.c", text)
    assert [(f.name, f.last_line - f.first_line) for f in functions] == [("both", 4), ("after", 0)]
    assert skipped == {"parts of files with a syntax error": 1}


@pytest.mark.parametrize("opened", ["void f(void) {\n  if (x {\n", "NAMESPACE(x) {\n", "ns x {\n"])
def test_what_an_error_makes_of_several_functions_is_not_one(opened):
    functions, skipped = found("a.c", f"{opened}}}\nint g(void)\n{{\n  return 4;\n}}\n}}\n")
    assert all(f.code.count("return 4") == (f.name == "g") for f in functions)
    assert functions or skipped


def test_line_ends_and_characters_are_those_of_the_file():
    raw = b'\xef\xbb\xbfint a;\r\nint f(char *s) {\r\n  s = "\xc3\xa4";\r\n}\r\n'
    text = source_text(raw, Counter(), every=False)
    (function,) = functions_of(text, languages_of("a.c"), Counter())
    assert (function.first_line, function.last_line) == (2, 4)
    assert function.code == 'int f(char *s) {\r\n  s = "ä";\r\n}'


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbfint f;\r\n", b"\xef\xbb\xbfint \xe4;\n", b"a\rb"])
def test_a_file_is_read_as_the_readers_of_training_data_do(raw):
    config = DataConfig(encoding_errors="replace")
    as_reader = Reading("x", config, ReadFacts()).whole_text(raw, "x")
    skipped = Counter()
    assert source_text(raw, skipped, every=False) == as_reader
    assert sum(skipped.values()) == (b"\xe4" in raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"int a;\0", "not text in UTF-8"),
        ("int f() { return 1; }".encode("utf-16"), "not text in UTF-8"),
        (b"x" * (MOST_BYTES + 1), "above 4 MiB"),
        (b"// Code generated by protoc-gen-go. DO NOT EDIT.\npackage x\n", "generated"),
        (b"/* @generated by hand */\nint f(void) { return 1; }\n", "generated"),
        (b"var a=1;" * 2000, "generated"),
    ],
)
def test_a_file_that_people_did_not_write_is_counted(raw, reason):
    skipped = Counter()
    assert source_text(raw, skipped, every=False) is None
    assert skipped == {reason: 1}


@pytest.mark.parametrize(("before", "is_read"), [(1987, False), (1988, True)])
def test_a_generator_names_itself_in_the_first_2000_bytes(before, is_read):
    raw = b"\n" * before + b"// @generated no\n"
    assert (source_text(raw, Counter(), every=False) is not None) == is_read


def test_a_text_that_only_speaks_of_generated_code_is_read():
    raw = b'int f(void) { puts("do not edit: generated"); return 1; }\n'
    assert source_text(raw, Counter(), every=False) is not None
    assert source_text(b"// @generated\nint a;\n", Counter(), every=True) is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.js", "(" * 200_000),
        ("a.jsx", f"x = [{',' * 1_000_000}];"),
        ("a.c", "int f(void) { return " + "(" * 50_000 + "1" + ")" * 50_000 + "; }"),
        ("a.java", "class A { " * 20_000),
        ("a.cpp", "a<" * 100_000),
        ("a.rb", "def f\n" * 20_000),
        ("a.cs", "a(b<c," * 30_000),
        ("a.py", "".join(f"{' ' * n}def f():\n" for n in range(1500))),
    ],
)
def test_deep_and_ambiguous_files_end_without_harm(name, text):
    functions, skipped = found(name, text)
    assert isinstance(functions, list)
    assert len(functions) <= 1 or skipped
