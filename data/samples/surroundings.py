"""Code that has nothing to do with the flaw: names, logging, counters, loops, checks, comments."""

import random
from dataclasses import dataclass
from string import Template

# Few words on purpose: a tiny model has to learn the flaws, not a large vocabulary around them.
NOUNS = [
    "order", "invoice", "account", "packet", "frame", "device", "channel", "report",
    "ticket", "payment", "image", "bucket",
]  # fmt: skip
VERBS = [
    "load", "store", "update", "read", "send", "build", "sync", "export",
    "attach", "merge", "submit", "refresh",
]  # fmt: skip
LOCALS = [
    "count", "total", "index", "width", "height", "offset", "window", "depth",
    "ratio", "attempts", "rows", "spare",
]  # fmt: skip
WORDS = ["started", "finished", "pending", "cached", "updated", "queued"]
FIELDS = ["hits", "misses", "retries", "weight", "rank", "budget"]
NUMBERS = ("0", "1", "2", "4", "8", "16", "64", "100")

# `$v` is a local of its own; the other placeholders are drawn anew for each statement.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "c": (
        'log_debug("$noun $word: %d", ctx->$field);',
        'log_info("$word $other");',
        "ctx->$field += $num;",
        "ctx->$field = ctx->$other_field + $num;",
        "int $v = ctx->$field * $num;\nctx->$other_field -= $v;",
        "unsigned int $v = ctx->$field % $num;\nupdate_${other}_stats(ctx, $v);",
        "if (ctx->$field > $num) {\n    ctx->$other_field = $num;\n}",
        'if (ctx->$field == $num) {\n    log_info("$other $word");\n}',
        "if (flags & ${NOUN}_$WORD) {\n    ctx->$field |= $num;\n}",
        "if (flags < 0) {\n    flags = $num;\n}",
        "int $v = 0;\nfor (int i = 0; i < $num; i++) {\n    $v += ctx->$field + i;\n}",
        "int $v = $num;\nwhile ($v > 0) {\n    $v--;\n    tick_$other(ctx);\n}",
        "stats_add(&ctx->stats, STAT_${OTHER}_$WORD, $num);",
        'trace_event(ctx, "$noun.$word", $num);',
        "long $v = now_ms();\nctx->$field = (int)($v - ctx->$other_field);",
        "switch (flags) {\ncase $num:\n    ctx->$field++;\n    break;\ndefault:\n    break;\n}",
        "/* the $other $field follows the $noun $other_field */",
        "/* $word $other: see the $noun notes */",
    ),
    "java": (
        'logger.debug("$noun $word: {}", $field);',
        'logger.info("$word $other");',
        "$field += $num;",
        'metrics.increment("$noun.$word");',
        'metrics.record("$other.$field", $num);',
        "int $v = $field * $num;\n$other_field -= $v;",
        'long $v = System.currentTimeMillis();\nmetrics.record("$noun.$word", $v);',
        "if ($field > $num) {\n    $other_field = $num;\n}",
        'if ($field == $num) {\n    logger.info("$other $word");\n}',
        "if (options.get${Other}Limit() < $num) {\n    options.set${Other}Limit($num);\n}",
        "int $v = 0;\nfor (int i = 0; i < $num; i++) {\n    $v += i * $field;\n}",
        "List<Integer> $v = new ArrayList<>();\nfor (int i = 0; i < $num; i++) {\n"
        "    $v.add(i + $field);\n}",
        'StringBuilder $v = new StringBuilder();\n$v.append("$noun").append($field);\n'
        "logger.debug($v.toString());",
        'cache.put("$other-$word", $field);',
        'Map<String, Integer> $v = new HashMap<>();\n$v.put("$word", $num);\n'
        "listener.on$Other($v);",
        "int $v = Math.max($field, $num);\nlistener.on$Other($v);",
        "// the $other $field follows the $noun $other_field",
        "// $word $other: see the $noun notes",
    ),
    "python": (
        'logger.debug("$noun $word: %d", self.$field)',
        'logger.info("$word $other")',
        "self.$field += $num",
        'metrics.increment("$noun.$word")',
        'metrics.record("$other.$field", $num)',
        "$v = self.$field * $num\nself.$other_field -= $v",
        "$v = time.monotonic()\nself.$field = $v - self.$other_field",
        "if self.$field > $num:\n    self.$other_field = $num",
        'if self.$field == $num:\n    logger.info("$other $word")',
        'if options.get("$other", $num) < $num:\n    options["$other"] = $num',
        "$v = 0\nfor i in range($num):\n    $v += i * self.$field",
        "$v = [i + self.$field for i in range($num)]\nself.on_$other($v)",
        '$v = ["$noun", str(self.$field)]\nlogger.debug("-".join($v))',
        'self.cache["$other-$word"] = self.$field',
        '$v = {"$word": $num, "$field": self.$field}\nself.on_$other($v)',
        "$v = max(self.$field, $num)\nself.on_$other($v)",
        "# the $other $field follows the $noun $other_field",
        "# $word $other: see the $noun notes",
    ),
}

# Openings of blocks that hold a few statements of their own.
BLOCKS: dict[str, tuple[str, ...]] = {
    "c": (
        "if (ctx->$field < $num) {",
        "if (flags & ${OTHER}_$WORD) {",
        "for (int i = 0; i < ctx->$field; i++) {",
        "while (ctx->$field-- > $num) {",
    ),
    "java": (
        "if ($field < $num) {",
        "if (options.is${Other}Enabled()) {",
        "for (int i = 0; i < $field; i++) {",
        "while ($field-- > $num) {",
    ),
    "python": (
        "if self.$field < $num:",
        'if options.get("$other"):',
        "for i in range(self.$field):",
        "while self.$field > $num:",
    ),
}

BLOCK_CHANCE = 0.15


@dataclass
class Surroundings:
    """Draw unrelated statements for one function; no local is declared twice.

    Attributes:
        language: "c", "java" or "python".
        reserved: Names already taken in the function; drawn locals are added.
        noun: What the function is about.
    """

    language: str
    reserved: set[str]
    noun: str
    num_numbered: int = 0

    def statement(self, rng: random.Random, depth: int = 0) -> list[str]:
        """Lines of one statement, or of a block of two to four."""
        if depth < 2 and rng.random() < BLOCK_CHANCE:
            lines = [self.substitute(rng.choice(BLOCKS[self.language]), rng)]
            for _ in range(rng.randint(2, 4)):
                lines += ["    " + line for line in self.statement(rng, depth + 1)]
            if self.language == "python":
                # A block may hold comments only; a statement after them keeps it well formed.
                return [*lines, "    " + self.substitute("self.$field -= $num", rng)]
            return [*lines, "}"]
        return self.substitute(rng.choice(STATEMENTS[self.language]), rng).split("\n")

    def line(self, rng: random.Random) -> str:
        """A statement of one line."""
        texts = [text for text in STATEMENTS[self.language] if "\n" not in text]
        return self.substitute(rng.choice(texts), rng)

    def substitute(self, text: str, rng: random.Random) -> str:
        """Fill the placeholders of one statement."""
        other, word = rng.choice(NOUNS), rng.choice(WORDS)
        first, second = rng.sample(FIELDS, 2)
        names = {
            "noun": self.noun,
            "NOUN": self.noun.upper(),
            "other": other,
            "Other": other.capitalize(),
            "OTHER": other.upper(),
            "word": word,
            "WORD": word.upper(),
            "field": first,
            "other_field": second,
            "num": rng.choice(NUMBERS),
        }
        if "$v" in text:
            names["v"] = self.fresh_local(rng)
        return Template(text).substitute(names)

    def fresh_local(self, rng: random.Random) -> str:
        """A local name that the function does not use yet."""
        free = [name for name in LOCALS if name not in self.reserved and name not in FIELDS]
        name = rng.choice(free) if free else self.numbered_local(rng)
        self.reserved.add(name)
        return name

    def numbered_local(self, rng: random.Random) -> str:
        """A name with a number, once the plain ones are used up."""
        self.num_numbered += 1
        return f"{rng.choice(LOCALS)}{self.num_numbered}"
