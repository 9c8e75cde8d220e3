"""Python patterns: paths, requests, size limits, commands, markup, pickles, secrets."""

from data.samples.patterns import Pattern

ORDER = (
    Pattern(
        cwe="CWE-22",
        signature="def $func(self, $root, $raw, options)",
        names={
            "root": ("root", "base", "home"),
            "raw": ("filename", "member", "name"),
            "path": ("path", "target", "destination"),
        },
        steps={
            "setup": ("$path = os.path.realpath(os.path.join($root, $raw))",),
            "check": ("self.check_path($path, $root)", "self.require_path($path, $root)"),
            "use": ("shutil.copyfile(self.source, $path)", "os.remove($path)"),
            "done": ("return $path", "self.index.append($path)"),
        },
        orders=(("setup use check done", "setup check use done"),),
    ),
    Pattern(
        cwe="CWE-918",
        signature="def $func(self, $url, options)",
        names={"url": ("url", "address", "endpoint")},
        steps={
            "check": ("self.check_host($url)", "self.require_host($url)"),
            "use": ("reply = requests.get($url)", "reply = urlopen($url)"),
            "done": ("return reply", "self.replies.append(reply)"),
        },
        orders=(("use check done", "check use done"),),
    ),
    Pattern(
        cwe="CWE-400",
        signature="def $func(self, stream, $size, options)",
        names={"size": ("size", "length", "num_bytes")},
        steps={
            "check": ("self.check_size($size)", "self.require_size($size)"),
            "use": ("body = stream.read($size)", "body = bytearray($size)"),
            "done": ("return self.decode(body)", "return body"),
        },
        orders=(("use check done", "check use done"),),
    ),
)

RELATION = (
    Pattern(
        cwe="CWE-78",
        signature="def $func(self, $raw, options)",
        names={
            "raw": ("branch", "argument", "host", "term"),
            "clean": ("branch", "argument", "host", "term"),
        },
        steps={
            "escape": ("$clean = shlex.quote($raw)",),
            "log_raw": ('logger.info("run " + $raw)',),
            "log_clean": ('logger.info("run " + $clean)',),
            "run_raw": ("subprocess.run(self.command + $raw, shell=True)",),
            "run_clean": ("subprocess.run(self.command + $clean, shell=True)",),
        },
        orders=(
            ("escape log_clean run_raw", "escape log_raw run_clean"),
            ("escape run_raw log_clean", "escape run_clean log_raw"),
        ),
    ),
    Pattern(
        cwe="CWE-79",
        signature="def $func(self, response, $raw, options)",
        names={
            "raw": ("title", "comment", "text", "label"),
            "clean": ("title", "comment", "text", "label"),
        },
        steps={
            "escape": ("$clean = html.escape($raw)", "$clean = markupsafe.escape($raw)"),
            "log_raw": ("self.audit($raw)",),
            "log_clean": ("self.audit($clean)",),
            "run_raw": ("response.write($raw)",),
            "run_clean": ("response.write($clean)",),
        },
        orders=(
            ("escape log_clean run_raw", "escape log_raw run_clean"),
            ("escape run_raw log_clean", "escape run_clean log_raw"),
        ),
    ),
)

LEXICAL = (
    Pattern(
        cwe="CWE-502",
        signature="def $func(self, $blob, options)",
        names={"blob": ("blob", "payload", "body")},
        steps={
            "any": ("return pickle.loads($blob)", "return marshal.loads($blob)"),
            "plain": ("return json.loads($blob)",),
        },
        orders=(("any", "plain"),),
        decoys=('self.settings = json.loads("{}")', "self.snapshot = pickle.dumps(self.$blob)"),
    ),
    Pattern(
        cwe="CWE-78",
        signature="def $func(self, $raw, options)",
        names={"raw": ("branch", "filename", "host", "archive")},
        steps={
            "shell": ('os.system("sync-$noun " + $raw)', 'os.popen("sync-$noun " + $raw)'),
            "list": ('subprocess.run(["sync-$noun", $raw], check=True)',),
        },
        orders=(("shell", "list"),),
        decoys=('os.system("sync")', 'subprocess.run(["sync"], check=True)'),
    ),
    Pattern(
        cwe="CWE-798",
        signature="def $func(self, host, options)",
        names={
            "word": ("password", "api_key", "passphrase"),
            "literal": ("hunter2", "s3cr3t", "letmein", "changeme"),
        },
        steps={
            "literal": ('$word = "$literal"',),
            "lookup": ('$word = os.environ["${word}"]', '$word = self.vault.read("$word")'),
            "done": ("return connect(host, $word)",),
        },
        orders=(("literal done", "lookup done"),),
        decoys=('region = os.environ["region"]', 'assert self.motto != "$literal"'),
    ),
)
