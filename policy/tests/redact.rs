//! L7 and S7: no password and no cookie in recorded statement text.

use impersonate_policy::{redact, redact_arguments, secret_parameters};
use proptest::prelude::*;
use std::borrow::Cow;

fn redacted(text: &str) -> String {
    String::from_utf8(redact(text.as_bytes()).into_owned()).unwrap()
}

/// Each statement, and what is to be recorded of it.
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let got = redacted(text);
        assert_eq!(&got, expected, "\nof {text}");
        assert_eq!(redacted(&got), got, "again, of {text}");
    }
}

fn hides(text: &str) {
    assert!(!redacted(text).contains("S3cr3t"), "{text}\n gives {}", redacted(text));
}

#[test]
fn passwords_of_roles_are_redacted() {
    check(&[
        (
            "CREATE ROLE bob PASSWORD 'S3cr3t'",
            "CREATE ROLE bob PASSWORD '<redacted>'",
        ),
        (
            "alter user bob with encrypted password 's' valid until '2030-01-01'",
            "alter user bob with encrypted password '<redacted>' valid until '2030-01-01'",
        ),
        (
            "ALTER ROLE bob UNENCRYPTED PASSWORD'x'LOGIN",
            "ALTER ROLE bob UNENCRYPTED PASSWORD'<redacted>'LOGIN",
        ),
        ("ALTER ROLE bob PASSWORD NULL", "ALTER ROLE bob PASSWORD NULL"),
        (
            "CREATE ROLE bob LOGIN PASSWORD 'it''s \\ x' IN ROLE sales, support VALID UNTIL '2030-01-01'",
            "CREATE ROLE bob LOGIN PASSWORD '<redacted>' IN ROLE sales, support VALID UNTIL '2030-01-01'",
        ),
        (
            "ALTER GROUP g PASSWORD E'a\\'b' ; SELECT 'x'",
            "ALTER GROUP g PASSWORD '<redacted>' ; SELECT 'x'",
        ),
        (
            "ALTER ROLE bob PASSWORD $a$x$b$y$a$; SELECT 1",
            "ALTER ROLE bob PASSWORD '<redacted>'; SELECT 1",
        ),
        (
            "ALTER ROLE bob PASSWORD U&'d!0061ta' UESCAPE '!'",
            "ALTER ROLE bob PASSWORD '<redacted>' UESCAPE '!'",
        ),
        (
            "ALTER ROLE bob PASSWORD 'a'\n -- more\n 'b' LOGIN",
            "ALTER ROLE bob PASSWORD '<redacted>'\n -- more\n '<redacted>' LOGIN",
        ),
        (
            "ALTER ROLE bob PASSWORD /* new /* very */ */ 'x'",
            "ALTER ROLE bob PASSWORD /* new /* very */ */ '<redacted>'",
        ),
        (
            "ALTER ROLE bob PASSWORD 'SCRAM-SHA-256$4096:c2FsdA==$a:b'",
            "ALTER ROLE bob PASSWORD '<redacted>'",
        ),
        (
            "CREATE ROLE r VALID UNTIL '2030-01-01' PASSWORD 'x'",
            "CREATE ROLE r VALID UNTIL '2030-01-01' PASSWORD '<redacted>'",
        ),
    ]);
}

#[test]
fn mistaken_spellings_are_redacted_as_well() {
    check(&[
        (
            "ALTER ROLE bob PASSWORD 'never closed",
            "ALTER ROLE bob PASSWORD '<redacted>'",
        ),
        (
            "ALTER ROLE bob PASSWORD \"in names' quotes\"",
            "ALTER ROLE bob PASSWORD '<redacted>'",
        ),
        (
            "ALTER ROLE bob PASSWORD hunter2!x; SELECT 1",
            "ALTER ROLE bob PASSWORD '<redacted>'; SELECT 1",
        ),
        (
            "ALTER ROLE bob PASSWORD = 'x'",
            "ALTER ROLE bob PASSWORD = '<redacted>'",
        ),
        (
            "ALTER ROLE bob PASSWORD ('x')",
            "ALTER ROLE bob PASSWORD ('<redacted>')",
        ),
        ("ALTER ROLE bob PASSWORD 12345", "ALTER ROLE bob PASSWORD '<redacted>'"),
        (
            "ALTER ROLE bob PASSWORD $tag$never closed",
            "ALTER ROLE bob PASSWORD '<redacted>'",
        ),
        (
            "CREATE USER bob IDENTIFIED BY 'x'",
            "CREATE USER bob IDENTIFIED BY '<redacted>'",
        ),
        ("postgres://bob:S3cr3t@h/db", "postgres://bob:<redacted>@h/db"),
        ("host=h password=S3cr3t user=bob", "host=h password=<redacted> user=bob"),
    ]);
}

#[test]
fn the_meaning_without_standard_conforming_strings_leaks_nothing() {
    hides("ALTER ROLE bob PASSWORD 'a\\'S3cr3t' VALID UNTIL 'x'");
    hides("SELECT 'a\\'', password = 'S3cr3t'");
    hides("SELECT 'a\\', password = 'S3cr3t'");
}

#[test]
fn options_of_foreign_servers_and_user_mappings_are_redacted() {
    check(&[
        ("CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', password 'x')",
         "CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', password '<redacted>')"),
        ("ALTER USER MAPPING FOR bob SERVER s OPTIONS (SET password 'x', ADD sslpassword 'y', passfile '/z')",
         "ALTER USER MAPPING FOR bob SERVER s OPTIONS (SET password '<redacted>', ADD sslpassword '<redacted>', passfile '/z')"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'h', \"Api_Key\" 'x', aws_secret E'y', \"token\" $$z$$)",
         "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'h', \"Api_Key\" '<redacted>', aws_secret '<redacted>', \"token\" '<redacted>')"),
        ("ALTER FOREIGN TABLE t OPTIONS (ADD passphrase 'x', SET schema 's')",
         "ALTER FOREIGN TABLE t OPTIONS (ADD passphrase '<redacted>', SET schema 's')"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (U&\"!0070assword\" UESCAPE '!' 'x')",
         "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (U&\"!0070assword\" UESCAPE '!' '<redacted>')"),
    ]);
}

#[test]
fn connection_strings_lose_their_password_and_nothing_else() {
    check(&[
        (
            "CREATE SUBSCRIPTION s CONNECTION 'host=h password=x user=u' PUBLICATION p",
            "CREATE SUBSCRIPTION s CONNECTION 'host=h password=<redacted> user=u' PUBLICATION p",
        ),
        (
            "SELECT * FROM dblink('host=h password=''a b'' user=u', 'SELECT 1')",
            "SELECT * FROM dblink('host=h password=''<redacted>'' user=u', 'SELECT 1')",
        ),
        (
            "SELECT dblink_connect('c', 'password = x\\ y user=u')",
            "SELECT dblink_connect('c', 'password = <redacted> user=u')",
        ),
        (
            "SELECT dblink_connect(E'host=h\\tpassword=\\'x\\'')",
            "SELECT dblink_connect(E'host=h\tpassword=''<redacted>''')",
        ),
        (
            "SELECT dblink_connect($$sslpassword=x host=h$$)",
            "SELECT dblink_connect($$sslpassword=<redacted> host=h$$)",
        ),
        (
            "SELECT dblink('postgresql://u:p@ss/w@h:5432/db?sslmode=require', 'SELECT 1')",
            "SELECT dblink('postgresql://u:<redacted>@h:5432/db?sslmode=require', 'SELECT 1')",
        ),
        (
            "SELECT dblink('postgres://h/db?user=u&password=x')",
            "SELECT dblink('postgres://h/db?user=u&password=<redacted>')",
        ),
        (
            "SELECT dblink('postgres://u@h:5432/db')",
            "SELECT dblink('postgres://u@h:5432/db')",
        ),
    ]);
    hides("SELECT dblink('host=h password=''a b\\''S3cr3t'' user=u', 'SELECT 1')");
    hides("SELECT dblink_connect('host=h password=' || 'S3cr3t')");
    hides("SELECT dblink_connect('host=h password=''' || 'S3cr3t' || '''')");
    hides("SELECT dblink_connect(concat('host=h password=', 'S3cr3t'))");
    hides("SELECT dblink_connect(format('host=%s password=%s', 'h', 'S3cr3t'))");
    hides("SELECT dblink_connect(format('postgres://%s:%s@h', 'u', 'S3cr3t'))");
    hides("SELECT dblink_connect('postgres://u:' || 'S3cr3t' || '@h')");
    hides("SELECT dblink_connect('host=h password='\n'S3cr3t')");
    hides("SELECT dblink_connect(U&'host=h \\0070assword=S3cr3t')");
    hides("SELECT dblink_connect(U&'host=h !0070assword=S3cr3t' UESCAPE '!')");
    hides("SELECT dblink_connect(E'host=h \\x70\\141ssword=S3cr3t')");
    hides("SELECT dblink_connect(E'host=h \\u0070assword=S3cr3t')");
}

#[test]
fn settings_named_like_secrets_are_redacted() {
    check(&[
        ("SET app.password = 'x'", "SET app.password = '<redacted>'"),
        (
            "SET LOCAL \"app\".\"db_Password\" TO 'x', 'y'",
            "SET LOCAL \"app\".\"db_Password\" TO '<redacted>', '<redacted>'",
        ),
        (
            "ALTER ROLE bob IN DATABASE d SET app.secret TO x",
            "ALTER ROLE bob IN DATABASE d SET app.secret TO x",
        ),
        (
            "SELECT set_config('app.user', 'bob', false), set_config('app.password', 'x', false)",
            "SELECT set_config('app.user', 'bob', false), set_config('app.password', '<redacted>', false)",
        ),
        (
            "SET password_encryption = 'scram-sha-256'",
            "SET password_encryption = 'scram-sha-256'",
        ),
        (
            "UPDATE pg_settings SET setting = 'x' WHERE name = 'app.password'",
            "UPDATE pg_settings SET setting = '<redacted>' WHERE name = 'app.password'",
        ),
        ("SHOW app.password", "SHOW app.password"),
        (
            "SELECT current_setting('app.password', true)",
            "SELECT current_setting('app.password', true)",
        ),
    ]);
}

#[test]
fn cookies_are_redacted() {
    check(&[
        ("SELECT setuser('bob', cookie => 'x')", "SELECT setuser('bob', cookie => '<redacted>')"),
        ("SELECT setuser('bob', COOKIE := E'x', reason => 'INC-4711')",
         "SELECT setuser('bob', COOKIE := '<redacted>', reason => 'INC-4711')"),
        ("SELECT setuser('bob', 'INC-4711', false, 'x', true)",
         "SELECT setuser('bob', 'INC-4711', false, '<redacted>', true)"),
        ("select PG_CATALOG . \"setuser\" ( 'bob' , NULL /* , */, (false), ('x' || 'y')::text, no_revert => false)",
         "select PG_CATALOG . \"setuser\" ( 'bob' , NULL /* , */, (false), ('<redacted>' || '<redacted>')::text, no_revert => false)"),
        ("SELECT setuser('bob', local => false, no_revert => true, reason => 'INC-1')",
         "SELECT setuser('bob', local => false, no_revert => true, reason => 'INC-1')"),
        ("SELECT setuser(NULL, cookie => 12345)", "SELECT setuser(NULL, cookie => '<redacted>')"),
        ("SELECT setuser(NULL, NULL, NULL, 12345)", "SELECT setuser(NULL, NULL, NULL, '<redacted>')"),
        ("SELECT setuser('bob', cookie => $1)", "SELECT setuser('bob', cookie => $1)"),
        ("SELECT setuser('bob', cookie => $$x", "SELECT setuser('bob', cookie => '<redacted>'"),
        ("SELECT setuser('bob', cookie => 'x'), 1 AS one, 'y'", "SELECT setuser('bob', cookie => '<redacted>'), 1 AS one, 'y'"),
    ]);
}

#[test]
fn strings_are_looked_into() {
    check(&[
        (
            "DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''x'''; PERFORM 'y'; END $$",
            "DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''<redacted>'''; PERFORM 'y'; END $$",
        ),
        (
            "DO 'BEGIN ALTER ROLE bob PASSWORD ''x''; END'",
            "DO 'BEGIN ALTER ROLE bob PASSWORD ''<redacted>''; END'",
        ),
        (
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$ DECLARE v_password text := 'x'; BEGIN \
          PERFORM dblink($d$password=y host=h$d$, 'SELECT 1'); END $f$",
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$ DECLARE v_password text := '<redacted>'; BEGIN \
          PERFORM dblink($d$password=<redacted> host=h$d$, 'SELECT 1'); END $f$",
        ),
        (
            "CREATE FUNCTION check_password(u text, p text) RETURNS boolean LANGUAGE 'sql' AS 'SELECT true'",
            "CREATE FUNCTION check_password(u text, p text) RETURNS boolean LANGUAGE 'sql' AS 'SELECT true'",
        ),
        (
            "DO $$ BEGIN EXECUTE format('ALTER ROLE %I PASSWORD %L', 'bob', 'x'); PERFORM 'y'; END $$",
            "DO $$ BEGIN EXECUTE format('ALTER ROLE %I PASSWORD %L', '<redacted>', '<redacted>'); PERFORM 'y'; END $$",
        ),
        (
            "SELECT '{\"user\": \"bob\", \"password\": \"x\", \"pin\": 1}'::jsonb",
            "SELECT '{\"user\": \"bob\", \"password\": \"<redacted>\", \"pin\": 1}'::jsonb",
        ),
        (
            "SELECT E'ALTER ROLE bob PASSWORD \\'x\\' \\u00e9'",
            "SELECT '<redacted>'",
        ),
        (
            "INSERT INTO log VALUES ('reset password=x for bob')",
            "INSERT INTO log VALUES ('reset password=<redacted> for bob')",
        ),
        (
            "SELECT 1 -- password=x\n, 2 /* ALTER ROLE bob PASSWORD 'x' */, 3 /* plain */",
            "SELECT 1 --<redacted>\n, 2 /*<redacted>*/, 3 /* plain */",
        ),
    ]);
    hides("DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ' || quote_literal('S3cr3t'); END $$");
    hides("DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''' || 'S3cr3t' || ''''; END $$");
    hides("DO $$ BEGIN EXECUTE 'ALTER ROLE ' || r || ' PASSWORD ''S3cr3t'''; END $$");
    hides("DO $$ BEGIN EXECUTE 'UPDATE t SET password = $1' USING 'S3cr3t'; END $$");
    hides("DO $$ BEGIN EXECUTE 'INSERT INTO t (name, password) VALUES (''bob'', ' || quote_literal('S3cr3t'); END $$");
    hides(
        "DO $a$ BEGIN EXECUTE $b$ DO $c$ BEGIN EXECUTE 'DO $d$ BEGIN EXECUTE ''ALTER ROLE bob PASSWORD ''''S3cr3t'''' \
           ''; END $d$'; END $c$ $b$; END $a$",
    );
    hides("SELECT '{\"a\": \"{\\\"password\\\": \\\"S3cr3t\\\"}\"}'");
}

#[test]
fn what_is_compared_with_or_put_into_a_password_is_redacted() {
    check(&[
        ("SELECT password FROM t WHERE password = 'x' AND name = 'bob'",
         "SELECT password FROM t WHERE password = '<redacted>' AND name = 'bob'"),
        ("SELECT * FROM t WHERE t.password <> 'x' OR name = 'bob'", "SELECT * FROM t WHERE t.password <> '<redacted>' OR name = 'bob'"),
        ("SELECT * FROM t WHERE 'x'::text = password", "SELECT * FROM t WHERE '<redacted>'::text = password"),
        ("SELECT * FROM t WHERE password = crypt('x', password) AND name = 'bob'",
         "SELECT * FROM t WHERE password = crypt('<redacted>', password) AND name = 'bob'"),
        ("SELECT * FROM t WHERE crypt('x', hash) = hash", "SELECT * FROM t WHERE crypt('<redacted>', hash) = hash"),
        ("SELECT * FROM t WHERE lower(password) = 'x'", "SELECT * FROM t WHERE lower(password) = '<redacted>'"),
        ("SELECT * FROM t WHERE password LIKE 'x%' AND name = 'bob'", "SELECT * FROM t WHERE password LIKE '<redacted>' AND name = 'bob'"),
        ("SELECT * FROM t WHERE password IN ('x', 'y') AND name = 'bob'",
         "SELECT * FROM t WHERE password IN ('<redacted>', '<redacted>') AND name = 'bob'"),
        ("SELECT * FROM t WHERE password = ANY (ARRAY['x']) AND name = 'bob'",
         "SELECT * FROM t WHERE password = ANY (ARRAY['<redacted>']) AND name = 'bob'"),
        ("SELECT * FROM t WHERE password::text IS DISTINCT FROM 'x'", "SELECT * FROM t WHERE password::text IS DISTINCT FROM '<redacted>'"),
        ("UPDATE t SET name = 'bob', password = 'x' WHERE id = 7", "UPDATE t SET name = 'bob', password = '<redacted>' WHERE id = 7"),
        ("UPDATE t SET password = CASE WHEN a THEN 'x' ELSE 'y' END, name = 'bob'",
         "UPDATE t SET password = CASE WHEN a THEN '<redacted>' ELSE '<redacted>' END, name = 'bob'"),
        ("UPDATE t SET (name, password) = ('bob', 'x') WHERE city = 'y'",
         "UPDATE t SET (name, password) = ('<redacted>', '<redacted>') WHERE city = 'y'"),
        ("SELECT data->>'password' = 'x' FROM t WHERE data->>'name' = 'bob'",
         "SELECT data->>'password' = '<redacted>' FROM t WHERE data->>'name' = 'bob'"),
        ("SELECT jsonb_build_object('name', 'bob', 'password', 'x', 'city', 'y')",
         "SELECT jsonb_build_object('name', 'bob', 'password', '<redacted>', 'city', 'y')"),
        ("SELECT set_user_password('bob', 'x'), 'y'", "SELECT set_user_password('<redacted>', '<redacted>'), 'y'"),
        ("INSERT INTO t SELECT 'bob' AS name, 'x' AS password", "INSERT INTO t SELECT 'bob' AS name, '<redacted>' AS password"),
        ("CREATE TABLE t (name text DEFAULT 'bob', password varchar(30) NOT NULL DEFAULT 'x', city text DEFAULT 'y')",
         "CREATE TABLE t (name text DEFAULT 'bob', password varchar(30) NOT NULL DEFAULT '<redacted>', city text DEFAULT 'y')"),
    ]);
}

#[test]
fn what_is_inserted_into_a_password_column_is_redacted() {
    check(&[
        ("INSERT INTO t (name, password) VALUES ('bob', 'x'), ('carol', md5('y')), ('dave', 12345)",
         "INSERT INTO t (name, password) VALUES ('bob', '<redacted>'), ('carol', md5('<redacted>')), ('dave', '<redacted>')"),
        ("INSERT INTO s.t (\"Password\", name) VALUES ('x', 'bob') ON CONFLICT (name) DO UPDATE SET name = 'bob'",
         "INSERT INTO s.t (\"Password\", name) VALUES ('<redacted>', 'bob') ON CONFLICT (name) DO UPDATE SET name = 'bob'"),
        ("INSERT INTO t (name, password) SELECT 'bob', 'x' FROM u WHERE city = 'y'",
         "INSERT INTO t (name, password) SELECT 'bob', '<redacted>' FROM u WHERE city = 'y'"),
        ("WITH v (name, password) AS (VALUES ('bob', 'x')) SELECT * FROM v", "WITH v (name, password) AS (VALUES ('bob', '<redacted>')) SELECT * FROM v"),
        ("SELECT * FROM (VALUES ('bob', 'x')) AS v (name, password)", "SELECT * FROM (VALUES ('<redacted>', '<redacted>')) AS v (name, password)"),
        ("INSERT INTO secrets VALUES (1, 'x')", "INSERT INTO secrets VALUES (1, '<redacted>')"),
        ("INSERT INTO setting VALUES ('smtp_password', 'x', 'y')", "INSERT INTO setting VALUES ('smtp_password', '<redacted>', 'y')"),
    ]);
}

#[test]
fn nor_does_it_matter_on_which_side_the_password_stands() {
    for text in [
        "SELECT 'S3cr3t' = ANY (SELECT password FROM t)",
        "SELECT 'S3cr3t' IN (SELECT password FROM t)",
        "SELECT 'S3cr3t' = md5(t.password)",
        "SELECT 'S3cr3t' LIKE password",
        "SELECT * FROM t WHERE password COLLATE \"C\" = 'S3cr3t'",
        "SELECT * FROM t WHERE (password)::text || salt = 'S3cr3t'",
        "SELECT password = 'a'::pg_catalog.text || 'S3cr3t'",
        "SELECT password BETWEEN 'S3cr3t' AND 'S3cr3t'",
        "SELECT '{\"password\": [\"a\", \"S3cr3t\"]}'",
        "MERGE INTO t USING u ON a = b WHEN NOT MATCHED THEN INSERT (name, password) VALUES ('bob', 'S3cr3t')",
        "COPY t FROM PROGRAM 'PGPASSWORD=S3cr3t psql'",
        "EXECUTE 'SELECT setuser(''bob'', NULL, false, ' || quote_literal('S3cr3t') || ')'",
    ] {
        hides(text);
    }
}

#[test]
fn statements_that_only_mention_a_password_stay() {
    for text in [
        "SELECT name, password FROM t WHERE name = 'bob' AND id = 7 ORDER BY password LIMIT 5",
        "SELECT length(password) > 8, 'x' FROM t WHERE password IS NOT NULL AND city = 'y'",
        "ALTER TABLE t ADD COLUMN password text; SELECT 'x'",
        "ALTER TABLE t RENAME COLUMN password TO old_password",
        "COMMENT ON COLUMN t.password IS 'hash of the user''s password'",
        "GRANT SELECT (password) ON t TO bob",
        "CREATE INDEX ON t (password) WHERE city = 'y'",
        "SELECT * FROM t JOIN token ON t.id = token.id WHERE t.name = 'bob'",
        "DO $$ BEGIN RAISE EXCEPTION 'wrong password for %', who USING ERRCODE = '28000'; END $$",
        "SELECT 'a\\b', E'c\\n', 'https://example.com/x'",
        "CREATE FUNCTION f(password text) RETURNS text LANGUAGE sql AS $$ SELECT md5(password) $$",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn text_in_other_encodings_is_redacted_without_cutting_characters() {
    // LATIN1 and EUC_JP.
    assert_eq!(
        &*redact(b"ALTER ROLE \"Andr\xe9\" PASSWORD '\xe9t\xe9' VALID UNTIL 'x'"),
        b"ALTER ROLE \"Andr\xe9\" PASSWORD '<redacted>' VALID UNTIL 'x'"
    );
    assert_eq!(
        &*redact(b"SELECT dblink('\xb0\xa1=\xb0\xa2 password=\xb0\xa3 user=\xb0\xa4')"),
        b"SELECT dblink('\xb0\xa1=\xb0\xa2 password=<redacted> user=\xb0\xa4')".as_slice()
    );
}

#[test]
fn long_nonsense_takes_no_longer_than_its_length_allows() {
    // Quadratic time would be minutes.
    for part in [
        "password",
        "password ",
        "password(",
        "token,",
        "(",
        "'",
        "''",
        "\\'",
        "'password'",
        "'a' password ",
        "$a$",
        "$a",
        "/*",
        "://",
        "://a:",
        "token%",
        "password=",
        "case ",
        "(token)",
        "(a,token)=",
        "values(token)",
        "password='",
        "\"",
        "u&\"token",
        "insert into t (token) values ",
        "'a'=password ",
        "E'\\'password",
        "--password=x\n",
        "'pwd='\n",
        "{\"token\":",
    ] {
        let text = part.repeat(50_000 / part.len());
        assert!(redact(text.as_bytes()).len() < 250_000, "{part}");
    }
}

/// Spellings of a statement: letter case, and what may stand between tokens.
#[derive(Clone, Debug)]
struct Spelling {
    upper: Vec<bool>,
    gaps: Vec<&'static str>,
}

fn spelling() -> impl Strategy<Value = Spelling> {
    let gap = prop::sample::select(vec![
        " ",
        "\n",
        "\t ",
        " /* it's */ ",
        "/**/",
        " -- don't\n",
        "/* /* \" */ ' */",
        "\r\n",
        " /* $$ */ ",
        "\x0b",
    ]);
    (prop::collection::vec(any::<bool>(), 40), prop::collection::vec(gap, 40))
        .prop_map(|(upper, gaps)| Spelling { upper, gaps })
}

impl Spelling {
    /// `tokens` without the spaces that separate them, `§` for the secret.
    fn spell(&self, tokens: &str, secret: &str) -> String {
        let mut text = String::new();
        for (number, token) in tokens.split(' ').enumerate() {
            let is_word = token.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
            match token {
                "§" => text.push_str(secret),
                word if is_word && self.upper[number % 40] => text.push_str(&word.to_uppercase()),
                other => text.push_str(other),
            }
            text.push_str(self.gaps[number % 40]);
        }
        text
    }
}

/// A secret, and a constant that means it.
fn secret() -> impl Strategy<Value = (String, String)> {
    let inside = "[a-zA-Z0-9 '\"\\\\$%;(),=/*-]{0,12}";
    let core = "S3cr3t[0-9]{4}";
    (inside, core, inside, 0..4).prop_map(|(before, core, after, quoting)| {
        let value = format!("{before}{core}{after}");
        let constant = match quoting {
            0 => format!("'{}'", value.replace('\'', "''")),
            1 => format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
            2 => format!("$q9${value}$q9$"),
            _ => format!("U&'{}'", value.replace('\\', "\\\\").replace('\'', "''")),
        };
        (core, constant)
    })
}

const STATEMENTS: [&str; 22] = [
    "create role bob password §",
    "alter user bob with encrypted password § valid until '2030-01-01'",
    "create role bob login password § in role sales ; select 'x'",
    "alter role bob set app.password = §",
    "set local app.password to §",
    "select set_config ( 'app.password' , § , false )",
    "create user mapping for bob server s options ( user 'bob' , password § )",
    "alter server s options ( set host 'h' , add \"sslPassword\" § , drop port )",
    "select setuser ( 'bob' , cookie => § )",
    "select pg_catalog . setuser ( 'bob' , reason => 'x' , cookie := § , local => true )",
    "select \"setuser\" ( 'bob' , 'INC-4711' , false , § )",
    "select * from t where name = 'bob' and password = § or city = 'x'",
    "select * from t where t . password <> §",
    "select * from t where § = password",
    "select * from t where password = crypt ( § , password )",
    "update t set name = 'bob' , password = § where id = 7",
    "insert into t ( name , password , city ) values ( 'bob' , § , 'x' )",
    "insert into t ( password , name ) select § , 'bob' from u",
    "explain ( analyze ) update t set ( name , password ) = ( 'bob' , § )",
    "prepare p as select * from t where password like §",
    "select jsonb_build_object ( 'name' , 'bob' , 'password' , § )",
    "values ( 1 ) ; alter role bob password §",
];

fn quote(text: &str, style: u8) -> String {
    match style {
        0 => format!("'{}'", text.replace('\'', "''")),
        1 => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        // Never in the text.
        depth => format!("$d{depth}${text}$d{depth}$"),
    }
}

/// Text made of pieces that matter here.
fn nonsense() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "password",
        "PASSWORD ",
        "token",
        "cookie",
        "setuser(",
        "pass",
        "crypt(",
        "'",
        "''",
        "\"",
        "\\",
        "\\'",
        "$$",
        "$a$",
        "$1",
        "E'",
        "U&'",
        "u&\"",
        "N'",
        "--",
        "\n",
        "/*",
        "*/",
        "(",
        ")",
        "[",
        ",",
        ";",
        ".",
        "=",
        ":=",
        "=>",
        "::",
        "||",
        "%L",
        "://",
        "@",
        "a",
        "1",
        " ",
        "and ",
        "case ",
        "end ",
        "select ",
        "insert into ",
        "values ",
        "update ",
        "from ",
        "default ",
        "in ",
        "to ",
        "alter role ",
        "as ",
        "uescape ",
        "<redacted>",
        "'<redacted>'",
        "{",
        "}",
        "x'y",
        "\u{e9}",
        "identified by ",
        "\0",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_statement_leaks_its_secret_however_it_is_spelled(
        statement in prop::sample::select(&STATEMENTS[..]), (core, constant) in secret(), spelling in spelling()
    ) {
        let text = spelling.spell(statement, &constant);
        let got = redacted(&text);
        prop_assert!(!got.contains(&core), "{} gives {}", text, got);
        prop_assert_eq!(redacted(&got), got);
    }

    #[test]
    fn nor_within_strings_and_bodies(
        statement in prop::sample::select(&STATEMENTS[..]), (core, constant) in secret(), spelling in spelling(),
        styles in prop::collection::vec(0..2u8, 0..3), dollar in any::<bool>()
    ) {
        let mut text = spelling.spell(statement, &constant);
        for style in styles {
            text = format!("begin perform 'x'; execute {}; end", quote(&text, style));
        }
        if dollar {
            text = format!("do {}", quote(&text, 7));
        }
        let got = redacted(&text);
        prop_assert!(!got.contains(&core), "{} gives {}", text, got);
        prop_assert_eq!(redacted(&got), got);
    }

    #[test]
    fn no_connection_string_leaks_its_password(
        (before, core, after) in ("[a-z0-9'\"\\\\$%;,=/*-]{0,8}", "S3cr3t[0-9]{4}", "[a-z0-9'\"\\\\$%;,=/*-]{0,8}"),
        quoted in any::<bool>(), gap in prop::sample::select(vec!["", " ", "\n"]), style in 0..3u8,
        around in prop::sample::select(vec![
            ("select dblink(", ", 'select 1')"), ("create subscription s connection ", " publication p"),
            ("select dblink_connect('c', ", ")"), ("do $body$ begin perform dblink(", "); end $body$"),
        ])
    ) {
        let value = format!("{before}{core}{after}").replace('\\', "\\\\").replace('\'', "\\'");
        let value = if quoted { format!("'{value} {core}'") } else { value };
        let text = format!("{}{}{}", around.0, quote(&format!("host=h password{gap}={gap}{value} user=u"), style), around.1);
        let got = redacted(&text);
        prop_assert!(!got.contains(&core), "{} gives {}", text, got);
    }

    #[test]
    fn any_bytes_are_taken(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let got = redact(&text).into_owned();
        prop_assert_eq!(&*redact(&got), &*got);
    }

    #[test]
    fn redacting_again_changes_nothing(text in nonsense()) {
        let got = redact(&text).into_owned();
        prop_assert_eq!(&*redact(&got), &*got);
    }

    #[test]
    fn text_without_a_sign_of_secrets_is_not_even_copied(text in "[a-jl-oq-rt-z '\"();,.=$*/-]{0,300}") {
        prop_assert!(matches!(redact(text.as_bytes()), Cow::Borrowed(same) if same == text.as_bytes()));
    }
}

#[test]
fn parameters_are_secret_where_constants_would_be() {
    let cases: &[(&str, &[usize])] = &[
        ("SELECT $1, $2", &[]),
        ("UPDATE users SET password = $2 WHERE name = $1", &[2]),
        (
            "UPDATE users SET name = $1, password = crypt($2, gen_salt('bf')) WHERE id = $3",
            &[2],
        ),
        (
            "INSERT INTO users (name, password, note) VALUES ($1, $2, $3), ($4, $5, $6)",
            &[2, 5],
        ),
        ("SELECT set_config('app.db_password', $1, false)", &[1]),
        ("SELECT * FROM users WHERE password = $1::text AND name = $2", &[1]),
        ("SELECT setuser($1, cookie => $2)", &[2]),
        ("SELECT setuser($1, $2, false, $3)", &[3]),
        ("SELECT setuser($1, reason => $2), 'a'", &[]),
        ("SELECT $1 -- the password", &[]),
        ("SELECT '<parameter 1>', $1 AS password", &[1]),
        ("SELECT '$1 password', $2", &[]),
        ("SELECT $0, $99999999999999999999 AS password", &[]),
    ];
    for (text, expected) in cases {
        let secret = secret_parameters(text.as_bytes(), 6);
        let found: Vec<usize> = (1..=6).filter(|number| secret[number - 1]).collect();
        assert_eq!(&found, expected, "{text}");
    }
    assert!(secret_parameters(b"SELECT $1 AS password", 0).is_empty());
}

#[test]
fn arguments_for_secret_parameters_are_redacted() {
    let cases = [
        ("EXECUTE p('bob', 'S3cr3t')", "EXECUTE p('bob', '<redacted>')"),
        (
            "execute \"p q\" (1,/* x */ f('a,)(', 'b') || 'S3cr3t' )",
            "execute \"p q\" (1,'<redacted>')",
        ),
        (
            "EXPLAIN ANALYZE EXECUTE p(1, $$S3cr3t$$)",
            "EXPLAIN ANALYZE EXECUTE p(1, '<redacted>')",
        ),
        (
            "CREATE TABLE t AS EXECUTE p(1, 12345) WITH NO DATA",
            "CREATE TABLE t AS EXECUTE p(1, '<redacted>') WITH NO DATA",
        ),
        ("EXECUTE p(1, 'S3cr3t", "EXECUTE p('<redacted>'"),
        ("EXECUTE p", "EXECUTE p"),
        (
            "CREATE TABLE execute (a) AS EXECUTE p(1, 'S3cr3t')",
            "CREATE TABLE execute (a) AS EXECUTE p(1, '<redacted>')",
        ),
        (
            "CREATE TABLE execute AS EXECUTE execute(1, 'S3cr3t')",
            "CREATE TABLE execute AS EXECUTE execute(1, '<redacted>')",
        ),
    ];
    for (text, expected) in cases {
        let got = redact_arguments(text.as_bytes(), &[false, true]).into_owned();
        assert_eq!(String::from_utf8(got).unwrap(), expected, "{text}");
    }
    assert_eq!(&*redact_arguments(b"EXECUTE p('x')", &[false]), b"EXECUTE p('x')");
}
