//! What psql offers by the Tab key, and `\dx+`: with a real psql on a real terminal (by util-linux's `script`).

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use impersonate_server_tests::{shared, wait_until, Cluster, Database};

/// Readline as it is without a user's settings; no list of what a Tab could mean, which would be in the way.
const READLINE: &str = "set bell-style none\nset enable-bracketed-paste off\nset completion-query-items -1\n";
/// Ctrl-U: the line is emptied.
const EMPTY: &str = "\x15";

struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<String>>,
    lines: u32,
    folder: std::path::PathBuf,
}

impl Terminal {
    fn open(database: &Database, rc: &str) -> Terminal {
        let folder = std::env::temp_dir().join(format!("{}_{}", database.name, std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("inputrc"), READLINE).unwrap();
        std::fs::write(folder.join("psqlrc"), rc).unwrap();
        let psql = format!("stty cols 250; exec '{}'", Cluster::programs().join("psql").display());
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &psql, "/dev/null"])
            .env("PGHOST", database.cluster.host())
            .env("PGPORT", database.cluster.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", &database.name)
            .env("INPUTRC", folder.join("inputrc"))
            .env("PSQLRC", folder.join("psqlrc"))
            .env("PSQL_HISTORY", "/dev/null")
            .env("PAGER", "cat")
            .env("SHELL", "/bin/sh")
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of util-linux, can be run");
        let screen = Arc::new(Mutex::new(String::new()));
        let mut output = child.stdout.take().unwrap();
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let keys = child.stdin.take().unwrap();
        let mut terminal = Terminal {
            child,
            keys,
            screen,
            lines: 0,
            folder,
        };
        terminal.wait("=# ");
        terminal.in_step();
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    #[track_caller]
    fn wait(&self, words: &str) {
        let screen = &self.screen;
        wait_until(&format!("psql shows {words:?}"), || {
            screen.lock().unwrap().contains(words)
        });
    }

    /// All that was asked for is on the screen, which is empty then.
    #[track_caller]
    fn in_step(&mut self) {
        self.lines += 1;
        let line = format!("in step {}", self.lines);
        self.press(&format!("{EMPTY}\\echo {line}\n"));
        // Its own line, and then the prompt; not the words as they are typed.
        self.wait(&format!("\n{line}\r\n"));
        self.screen.lock().unwrap().clear();
    }

    /// What the line is after this and a Tab.
    #[track_caller]
    fn tab(&mut self, typed: &str) -> String {
        self.press(typed);
        self.press("\t|");
        self.wait("|");
        // The prompt comes late after the last line.
        let screen = self.screen.lock().unwrap().clone();
        let from = screen
            .find(typed)
            .unwrap_or_else(|| panic!("{typed:?} is not in {screen:?}"));
        let line = screen[from..].split('|').next().unwrap().to_owned();
        self.in_step();
        line
    }

    /// What a command shows.
    #[track_caller]
    fn run(&mut self, command: &str) -> String {
        self.press(&format!("{command}\n\\echo the end\n"));
        self.wait("\nthe end\r\n");
        let shown = self.screen.lock().unwrap().clone();
        self.in_step();
        shown
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.keys.write_all(format!("{EMPTY}\\q\n").as_bytes());
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// README's list of what psql completes, on every version.
#[test]
fn psql_completes_what_readme_says() {
    let database = shared().database("tab");
    let mut terminal = Terminal::open(&database, "");
    for (typed, line) in [
        ("\\df setu", "\\df setuser "),
        ("\\sf setu", "\\sf setuser "),
        ("\\df impersonate.can", "\\df impersonate.can_setuser "),
        ("\\dx+ imp", "\\dx+ impersonate "),
        ("GRANT EXECUTE ON FUNCTION setu", "GRANT EXECUTE ON FUNCTION setuser "),
        (
            "ALTER FUNCTION setuser(",
            "ALTER FUNCTION setuser(text, text, boolean, text, boolean, boolean) ",
        ),
        ("CALL impersonate.impersonate_u", "CALL impersonate.impersonate_user "),
        ("SET impersonate.tar", "SET impersonate.target "),
        (
            "SET impersonate.on_violation TO rej",
            "SET impersonate.on_violation TO reject ",
        ),
        (
            "SELECT * FROM impersonate.audit_den",
            "SELECT * FROM impersonate.audit_denied ",
        ),
    ] {
        assert_eq!(terminal.tab(typed), line);
    }
    // What psql itself completes for no function, whoever made it.
    for none in ["SELECT setu", "SELECT current_da", "SELECT * FROM setu"] {
        assert_eq!(terminal.tab(none), none);
    }
}

/// The line for ~/.psqlrc, as docs/tools.md has it.
fn psqlrc() -> String {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/tools.md");
    let document = std::fs::read_to_string(document).unwrap();
    let line = document.lines().find(|line| line.trim().starts_with("\\set setuser "));
    line.expect("docs/tools.md has the line").trim().to_owned() + "\n"
}

/// A variable of psql's own is completed everywhere, and the switch is a statement of its own all the same (S4).
#[test]
fn s4_a_variable_of_psql_completes_the_switch() {
    let database = shared().database("variable");
    let bob = impersonate_server_tests::unique("bob");
    database
        .connect("postgres")
        .batch_execute(&format!("CREATE ROLE {bob} LOGIN"))
        .unwrap();
    let mut terminal = Terminal::open(&database, &psqlrc());
    let line = terminal.tab(":setu");
    assert_eq!(line.trim_end(), ":setuser");
    terminal.run(&format!("{line}'{bob}', reason => 'by Tab');"));
    let seen = terminal.run("SELECT concat('it is ', current_user, ' of ', session_user);");
    assert!(seen.contains(&format!("it is {bob} of postgres")), "{seen}");
    terminal.run(&format!("{line});"));
    let seen = terminal.run("SELECT concat('it is ', current_user);");
    assert!(seen.contains("it is postgres"), "{seen}");
}

/// `\dx+` lists every object of the extension, `setuser()` in pg_catalog too.
#[test]
fn dx_lists_what_the_extension_has() {
    let database = shared().database("dx");
    let shown = database.psql("postgres", "\\dx+ impersonate\n");
    assert!(shown.ok, "{}", shown.stderr);
    let members: Vec<String> = database
        .connect("postgres")
        .query(
            "SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
              WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'impersonate'",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(members.len() > 50, "{members:#?}");
    let lines: Vec<&str> = shown.stdout.lines().collect();
    for wanted in members.iter().map(String::as_str).chain([
        "function setuser(text,text,boolean,text,boolean,boolean)",
        "view impersonate.grants",
        "table impersonate.audit",
    ]) {
        assert!(lines.contains(&wanted), "{wanted}: {lines:#?}");
    }
}
