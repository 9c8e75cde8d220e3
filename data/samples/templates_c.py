"""C patterns: bounds, lifetime, null pointers, locks, format strings, file modes."""

from data.samples.patterns import Pattern

# Every order pattern has few alternatives of the check and of the use: the flaw is in the order,
# so a model has to recognise both and relate them.
ORDER = (
    Pattern(
        cwe="CWE-787",
        signature="int $func(struct ${noun}_ctx *ctx, const char *$src, size_t $len, int flags)",
        names={
            "src": ("src", "data", "payload"),
            "len": ("len", "size", "nbytes"),
            "dst": ("buf", "dst", "scratch"),
        },
        steps={
            "setup": ("char $dst[$cap];",),
            "check": (
                "if (check_bounds($len, sizeof($dst))) {\n    return $err;\n}",
                "if (require_bounds($len, sizeof($dst))) {\n    return $err;\n}",
            ),
            "use": ("memcpy($dst, $src, $len);", "memmove($dst, $src, $len);"),
            "done": ("return commit_$noun(ctx, $dst);", "return ${noun}_push(ctx, $dst, $len);"),
        },
        orders=(("setup use check done", "setup check use done"),),
    ),
    Pattern(
        cwe="CWE-416",
        signature="void $func(struct ${noun}_ctx *ctx, struct $noun *$obj, int flags)",
        names={"obj": ("entry", "node", "item"), "field": ("size", "refs", "length")},
        steps={
            "use": ("notify_closed(ctx, $obj->id);", "list_remove(ctx, &$obj->link);"),
            "release": ("free($obj);", "kfree($obj);"),
            "done": ("ctx->closed++;", "wake_waiters(ctx);"),
        },
        orders=(("release use done", "use release done"),),
    ),
    Pattern(
        cwe="CWE-476",
        signature="int $func(struct ${noun}_ctx *ctx, int $key, int flags)",
        names={
            "key": ("key", "id", "slot"),
            "obj": ("entry", "node", "item"),
            "field": ("size", "refs", "length"),
        },
        steps={
            "setup": (
                "struct $noun *$obj = ${noun}_find(ctx, $key);",
                "struct $noun *$obj = malloc(sizeof(*$obj));",
            ),
            "check": (
                "if ($obj == NULL) {\n    return $err;\n}",
                "if (!$obj) {\n    return $err;\n}",
            ),
            "use": ("$obj->$field = $num;", "$obj->$field++;"),
            "done": ("return ${noun}_insert(ctx, $obj);", "return commit_$noun(ctx, $obj);"),
        },
        orders=(("setup use check done", "setup check use done"),),
    ),
    Pattern(
        cwe="CWE-362",
        signature="int $func(struct ${noun}_ctx *ctx, int $delta, int flags)",
        names={"delta": ("delta", "amount", "change"), "lock": ("mutex", "spin")},
        steps={
            "lock": ("${lock}_lock(&ctx->lock);",),
            "use": ("ctx->balance += $delta;", "ctx->balance -= $delta;"),
            "middle": ("ctx->generation++;", "mark_dirty(ctx);"),
            "unlock": ("${lock}_unlock(&ctx->lock);",),
            "done": ("return 0;", "return $delta;"),
        },
        orders=(
            ("use lock middle unlock done", "lock use middle unlock done"),
            ("lock middle unlock use done", "lock middle use unlock done"),
        ),
    ),
)

RELATION = (
    Pattern(
        cwe="CWE-787",
        signature="int $func(struct ${noun}_ctx *ctx, int fd, int flags)",
        names={
            "src": ("line", "name", "label", "title"),
            "dst": ("line", "name", "label", "title"),
            "read": ("read_line", "recv_text"),
            "copy": ("memmove", "memcpy"),
        },
        steps={
            "setup": ("char $src[1024];\nchar $dst[$cap];", "char $dst[$cap];\nchar $src[1024];"),
            "input": ("$read(fd, $src, sizeof($src));",),
            "bad_input": ("$read(fd, $src, sizeof($dst));",),
            "copy": ("$copy($dst, $src, sizeof($dst));",),
            "bad_copy": ("$copy($dst, $src, sizeof($src));",),
            "done": ("return ${noun}_rename(ctx, $dst);",),
        },
        orders=(("setup bad_input bad_copy done", "setup input copy done"),),
    ),
    Pattern(
        cwe="CWE-125",
        signature="long $func(struct ${noun}_ctx *ctx, const int *$values, int $n, int flags)",
        names={
            "values": ("values", "samples", "table"),
            "n": ("n", "num_items", "length"),
            "i": ("i", "j", "k", "pos"),
            "c": ("level_no", "turn", "lap", "round_no"),
        },
        steps={
            "setup": ("long sum = 0;",),
            "read": ("for (int $i = 0; $i < $n; $i++) {\n    sum += $values[$i];\n}",),
            "over": ("for (int $i = 0; $i <= $n; $i++) {\n    sum += $values[$i];\n}",),
            "times": ("for (int $c = 1; $c <= $n; $c++) {\n    step_$noun(ctx, $c);\n}",),
            "less": ("for (int $c = 1; $c < $n; $c++) {\n    step_$noun(ctx, $c);\n}",),
            "done": ("return sum;",),
        },
        orders=(
            ("setup over less done", "setup read times done"),
            ("setup less over done", "setup times read done"),
        ),
    ),
    Pattern(
        cwe="CWE-415",
        signature="void $func(struct ${noun}_ctx *ctx, char *$a, char *$b, int flags)",
        names={
            "a": ("head", "left", "tail", "right"),
            "b": ("head", "left", "tail", "right"),
            "note": ("forget", "log_owner"),
        },
        steps={
            "first": ("free($a);",),
            "second": ("free($b);",),
            "note_b": ("$note(ctx, $b);",),
            "note_a": ("$note(ctx, $a);",),
            "done": ("ctx->closed++;",),
        },
        orders=(
            ("note_b first first done", "note_a first second done"),
            ("note_b first first done", "note_b first second done"),
        ),
    ),
)

LEXICAL = (
    Pattern(
        cwe="CWE-134",
        signature="void $func(struct ${noun}_ctx *ctx, const char *$text, int flags)",
        names={"text": ("text", "msg", "reason"), "out": ("stderr", "stdout", "ctx->log")},
        steps={
            "raw": ("fprintf($out, $text);",),
            "format": ('fprintf($out, "%s", $text);',),
        },
        orders=(("raw", "format"),),
        decoys=('fprintf($out, "%s", ctx->name);', 'fprintf($out, "$noun\\n");'),
    ),
    Pattern(
        cwe="CWE-120",
        signature="void $func(struct ${noun}_ctx *ctx, const char *$src, int flags)",
        names={"src": ("src", "data", "payload"), "dst": ("buf", "dst", "scratch")},
        steps={
            "setup": ("char $dst[$cap];",),
            "unbounded": ("strcpy($dst, $src);", 'sprintf($dst, "%s", $src);'),
            "bounded": (
                "strlcpy($dst, $src, sizeof($dst));",
                'snprintf($dst, sizeof($dst), "%s", $src);',
            ),
            "done": ("${noun}_push(ctx, $dst);",),
        },
        orders=(("setup unbounded done", "setup bounded done"),),
        decoys=(
            'char tag[8];\nsnprintf(tag, sizeof(tag), "%d", flags);',
            'char tag[8];\nstrcpy(tag, "none");',
        ),
    ),
    Pattern(
        cwe="CWE-732",
        signature="int $func(struct ${noun}_ctx *ctx, const char *$path, int flags)",
        names={
            "path": ("path", "file", "target"),
            "open": ("0777", "0666"),
            "own": ("0600", "0700"),
        },
        steps={
            "wide": ("int fd = open($path, O_CREAT | O_WRONLY, $open);", "mkdir($path, $open);"),
            "narrow": ("int fd = open($path, O_CREAT | O_WRONLY, $own);", "mkdir($path, $own);"),
            "done": ("return ${noun}_flush(ctx, $path);",),
        },
        orders=(("wide done", "narrow done"),),
        decoys=('mkdir("/var/run/$noun", 0600);', 'log_info("umask was 0777");'),
    ),
)
