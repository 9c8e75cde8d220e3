"""Java patterns: paths, permissions, redirects, queries, markup, cryptography."""

from data.samples.patterns import Pattern

ORDER = (
    Pattern(
        cwe="CWE-22",
        signature="public void $func(Path $base, String $raw, InputStream in) throws IOException",
        names={
            "base": ("base", "root", "home"),
            "raw": ("fileName", "entryName", "name"),
            "path": ("path", "target", "file"),
        },
        steps={
            "setup": ("Path $path = $base.resolve($raw).normalize();",),
            "check": ("sandbox.check($path, $base);", "sandbox.require($path, $base);"),
            "use": ("Files.copy(in, $path);", "Files.delete($path);"),
            "done": ("index.add($path);", 'metrics.increment("$noun.files");'),
        },
        orders=(("setup use check done", "setup check use done"),),
    ),
    Pattern(
        cwe="CWE-862",
        signature="public void $func(User $user, long $id)",
        names={"user": ("user", "caller", "actor"), "id": ("id", "${noun}Id", "key")},
        steps={
            "check": ("access.check($user, $id);", "access.require($user, $id);"),
            "use": ("repository.delete($id);", "repository.approve($id);"),
            "done": ("audit.write($user, $id);", "events.publish($id);"),
        },
        orders=(("use check done", "check use done"),),
    ),
    Pattern(
        cwe="CWE-601",
        signature="public void $func(HttpServletRequest request, HttpServletResponse response)",
        names={"url": ("url", "next", "location")},
        steps={
            "setup": ('String $url = request.getParameter("$url");',),
            "check": ("hosts.check($url);", "hosts.require($url);"),
            "use": ("response.sendRedirect($url);", 'response.setHeader("Location", $url);'),
            "done": ('audit.write("$noun", $url);', "events.publish($url);"),
        },
        orders=(("setup use check done", "setup check use done"),),
    ),
)

RELATION = (
    Pattern(
        cwe="CWE-89",
        signature="public ResultSet $func(Statement statement, String $raw) throws SQLException",
        names={"raw": ("name", "city", "text", "term"), "clean": ("name", "city", "text", "term")},
        steps={
            "escape": ("String $clean = escaper.escapeSql($raw);",),
            "log_raw": ('logger.info("search " + $raw);',),
            "log_clean": ('logger.info("search " + $clean);',),
            "run_raw": ("return statement.executeQuery(SELECT_NAME + $raw);",),
            "run_clean": ("return statement.executeQuery(SELECT_NAME + $clean);",),
        },
        orders=(("escape log_clean run_raw", "escape log_raw run_clean"),),
    ),
    Pattern(
        cwe="CWE-79",
        signature="public void $func(PrintWriter writer, String $raw)",
        names={
            "raw": ("title", "comment", "nickname", "label"),
            "clean": ("html", "markup"),
            "print": ("print", "println", "write"),
        },
        steps={
            "escape": (
                "String $clean = Encode.forHtml($raw);",
                "String $clean = HtmlUtils.htmlEscape($raw);",
            ),
            "log_raw": ("audit.write($raw);",),
            "log_clean": ("audit.write($clean);",),
            "run_raw": ("writer.$print($raw);",),
            "run_clean": ("writer.$print($clean);",),
        },
        orders=(
            ("escape log_clean run_raw", "escape log_raw run_clean"),
            ("escape run_raw log_clean", "escape run_clean log_raw"),
        ),
    ),
    Pattern(
        cwe="CWE-863",
        signature="public $Noun $func(User user, $Noun $a, $Other $b)",
        names={
            "a": ("current", "parent", "linked", "wanted"),
            "b": ("current", "parent", "linked", "wanted"),
        },
        steps={
            "check": (
                "if (!$a.isOwnedBy(user)) {\n    throw new AccessException();\n}\naudit.write($b);",
            ),
            "wrong": (
                "if (!$b.isOwnedBy(user)) {\n    throw new AccessException();\n}\naudit.write($a);",
            ),
            "done": ("return repository.save($a);", "return repository.reload($a);"),
        },
        orders=(("wrong done", "check done"),),
    ),
)

LEXICAL = (
    Pattern(
        cwe="CWE-89",
        signature="public ResultSet $func(Connection db, String $raw) throws SQLException",
        names={"raw": ("name", "email", "city", "code")},
        steps={
            "concat": (
                "Statement query = db.createStatement();\n"
                "return query.executeQuery(SELECT_NAME + $raw);",
            ),
            "bind": (
                "PreparedStatement query = db.prepareStatement(SELECT_NAME);\n"
                "query.setString(1, $raw);\nreturn query.executeQuery();",
            ),
        },
        orders=(("concat", "bind"),),
        decoys=(
            "PreparedStatement warm = db.prepareStatement(PING);\nwarm.execute();",
            "Statement warm = db.createStatement();\nwarm.executeQuery(PING);",
        ),
    ),
    Pattern(
        cwe="CWE-327",
        signature="public byte[] $func(byte[] $data, Key key) throws Exception",
        names={
            "data": ("data", "payload", "body"),
            "old": ("DES", "RC4", "AES/ECB/PKCS5Padding"),
            "new": ("AES/GCM/NoPadding", "ChaCha20-Poly1305"),
        },
        steps={
            "weak": ('Cipher cipher = Cipher.getInstance("$old");',),
            "strong": ('Cipher cipher = Cipher.getInstance("$new");',),
            "done": ("cipher.init(Cipher.ENCRYPT_MODE, key);\nreturn cipher.doFinal($data);",),
        },
        orders=(("weak done", "strong done"),),
        decoys=('logger.debug("not $new");', 'legacy.remove("$old");'),
    ),
    Pattern(
        cwe="CWE-330",
        signature="public String $func(int $size)",
        names={"size": ("size", "length", "width")},
        steps={
            "weak": ("Random source = new Random();",),
            "strong": ("SecureRandom source = new SecureRandom();",),
            "done": (
                "byte[] id = new byte[$size];\nsource.nextBytes(id);\nreturn Hex.encode(id);",
            ),
        },
        orders=(("weak done", "strong done"),),
        decoys=(
            "int jitter = new Random().nextInt($num);\nscheduler.delay(jitter);",
            "int jitter = new SecureRandom().nextInt($num);\nscheduler.delay(jitter);",
        ),
    ),
)
