//! documents FILE...: runs the SQL of documents and compares what comes out with what they say comes out.
//! documents --links FILE...: whether what they point to, in this folder, is there.
//!
//! Each document has a server and a database of its own, `hr`, and is read from top to bottom:
//!
//! - A block of `sql` is given to psql. The plain block right behind it is what must come out; where there is none,
//!   nothing may. Tables come without a count of rows, and spaces at the ends of lines don't count.
//! - `<!-- as anna -->` says whose session the blocks that follow are given to; at first it is `postgres`. Sessions
//!   stay, side by side; `<!-- leaves anna -->` ends one.
//! - `<!-- sql ... -->`, over several lines, is run in the same way and not shown. It must raise no error.
//! - The pids of sessions become 4711, 4712, ..., and hashes one and the same.
//! - A block of `sql example` is for the eye alone.
//!
//! With `ACCEPT=1` what comes out is written into the documents. Prints `ok FILE` or `not ok FILE` for each.

use impersonate_server_tests::Cluster;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

const DATABASE: &str = "hr";
const PATIENCE: Duration = Duration::from_secs(60);
/// Ends what a block gives. Nothing else is like it.
const MARK: &str = "=== that was the block ===";

fn main() -> ExitCode {
    let accept = std::env::var("ACCEPT").is_ok_and(|value| value == "1");
    let files: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--links", files)) = files.split_first().map(|(first, files)| (first.as_str(), files)) {
        let (dead, found) = dead_links(files);
        dead.iter().for_each(|link| println!("not ok {link}"));
        println!("{found} links");
        return ExitCode::from(u8::from(!dead.is_empty() || found == 0));
    }
    let mut good = true;
    for file in files {
        let text = fs::read_to_string(&file).expect("the document can be read");
        let (found, blocks) = run(&text);
        if found == text && blocks > 0 {
            println!("ok {file}");
        } else if accept && blocks > 0 {
            fs::write(&file, &found).expect("the document can be written");
            println!("ok {file} (accepted)");
        } else {
            good = false;
            println!("not ok {file}");
            println!("{}", difference(&text, &found));
        }
    }
    ExitCode::from(u8::from(!good))
}

/// The document as it should be, and how many blocks were run.
fn run(text: &str) -> (String, usize) {
    // Ended by a setting that some of these roles have, psql would not get in.
    let cluster = Cluster::builder().setting("log_min_messages", "fatal").start();
    cluster
        .connect("postgres", "postgres")
        .batch_execute(&format!("CREATE DATABASE {DATABASE}"))
        .expect("a database can be made");
    let mut stage = Stage {
        cluster: &cluster,
        sessions: BTreeMap::new(),
        pids: Vec::new(),
    };
    let mut found = String::new();
    let mut role = "postgres".to_owned();
    let mut blocks = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        found.push_str(line);
        found.push('\n');
        if let Some(name) = directive(line, "as") {
            role = name.to_owned();
        } else if let Some(name) = directive(line, "leaves") {
            stage.leave(name);
        } else if line == "<!-- sql" || line == "```sql" {
            let end = if line == "```sql" { "```" } else { "-->" };
            let mut sql = String::new();
            for line in lines.by_ref() {
                found.push_str(line);
                found.push('\n');
                if line == end {
                    break;
                }
                sql.push_str(line);
                sql.push('\n');
            }
            let output = stage.run(&role, &sql);
            blocks += 1;
            if end == "-->" {
                if output
                    .lines()
                    .any(|line| line.starts_with("ERROR") || line.starts_with("FATAL"))
                {
                    found.push_str(&format!("!!! {output}\n"));
                }
                continue;
            }
            if lines.peek() == Some(&"```") {
                lines.next();
                for line in lines.by_ref() {
                    if line == "```" {
                        break;
                    }
                }
            }
            if !output.is_empty() {
                found.push_str(&format!("```\n{output}\n```\n"));
            }
        } else if line.starts_with("```") {
            // Something else, such as a shell's.
            for line in lines.by_ref() {
                found.push_str(line);
                found.push('\n');
                if line == "```" {
                    break;
                }
            }
        }
    }
    (found, blocks)
}

/// `<!-- WORD NAME -->`
fn directive<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix("<!-- ")?
        .strip_suffix(" -->")?
        .strip_prefix(word)?
        .strip_prefix(' ')
}

/// The sessions of a document.
struct Stage<'a> {
    cluster: &'a Cluster,
    sessions: BTreeMap<String, Session>,
    pids: Vec<String>,
}

struct Session {
    psql: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Stage<'_> {
    fn run(&mut self, role: &str, sql: &str) -> String {
        if !self.sessions.contains_key(role) {
            let mut session = Session::start(self.cluster, role);
            let pid = session.run("SELECT pg_backend_pid()\n\\g (format=unaligned tuples_only=on)\n");
            assert!(pid.parse::<u32>().is_ok(), "psql as {role} does not get in: {pid}");
            self.pids.push(pid);
            self.sessions.insert(role.to_owned(), session);
        }
        let session = self.sessions.get_mut(role).expect("it is there");
        let output = session.run(sql);
        if session.psql.try_wait().is_ok_and(|status| status.is_some()) {
            self.sessions.remove(role);
        }
        self.masked(&output)
    }

    fn leave(&mut self, role: &str) {
        if let Some(session) = self.sessions.remove(role) {
            session.end();
        }
    }

    fn masked(&self, output: &str) -> String {
        let mut words = String::new();
        let mut word = String::new();
        for c in output.chars().chain(['\0']) {
            if c.is_ascii_alphanumeric() {
                word.push(c);
                continue;
            }
            if let Some(at) = self.pids.iter().position(|pid| *pid == word) {
                words.push_str(&(4711 + at).to_string());
            } else if word.trim_start_matches('x').len() == 64
                && word.trim_start_matches('x').bytes().all(is_hexadecimal)
            {
                words.push_str(&word[..word.len() - 64]);
                words.push_str(&"8d60f2".repeat(11)[..64]);
            } else {
                words.push_str(&word);
            }
            word.clear();
            if c != '\0' {
                words.push(c);
            }
        }
        words
    }
}

fn is_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

impl Session {
    fn start(cluster: &Cluster, role: &str) -> Session {
        let mut command = cluster.command("psql", role, DATABASE);
        let (reader, writer) = std::io::pipe().expect("a pipe can be had");
        command
            .args(["-X", "-q", "-P", "footer=off", "-P", "pager=off"])
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a pipe can be shared"))
            .stderr(writer);
        let mut psql = command.spawn().expect("psql can be run");
        // With the ends of the pipe that only psql should hold.
        drop(command);
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = psql.stdin.take().expect("it is a pipe");
        Session { psql, input, output }
    }

    /// What comes out, to the end of the block or of psql.
    fn run(&mut self, sql: &str) -> String {
        // psql may have ended: then nothing comes.
        let _ = writeln!(self.input, "{sql}\n\\echo '{MARK}'");
        let _ = self.input.flush();
        let mut lines: Vec<String> = Vec::new();
        loop {
            match self.output.recv_timeout(PATIENCE) {
                Ok(line) if line == MARK => break,
                Ok(line) => lines.push(line.trim_end().to_owned()),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let _ = self.psql.wait();
                    break;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    lines.push("!!! nothing comes any more".to_owned());
                    break;
                }
            }
        }
        let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
        let begin = lines.iter().position(|line| !line.is_empty()).unwrap_or(0);
        lines[begin.min(end)..end].join("\n")
    }

    fn end(mut self) {
        drop(self.input);
        let _ = self.psql.wait();
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        for (_, session) in std::mem::take(&mut self.sessions) {
            session.end();
        }
    }
}

/// Links to files and headings that are not there, and how many links there are in all.
fn dead_links(files: &[String]) -> (Vec<String>, usize) {
    let mut dead = Vec::new();
    let mut found = 0;
    for file in files {
        let text = fs::read_to_string(file).expect("the document can be read");
        let prose: String = prose(&text).collect::<Vec<_>>().join("\n");
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            found += 1;
            let (path, heading) = link
                .split_once('#')
                .map_or((link, None), |(path, heading)| (path, Some(heading)));
            let there = if path.is_empty() {
                Some(text.clone())
            } else {
                fs::read_to_string(Path::new(file).with_file_name(path)).ok()
            };
            let good = match (there, heading) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(text), Some(heading)) => prose_headings(&text).any(|name| name == heading),
            };
            if !good {
                dead.push(format!("{file}: {link}"));
            }
        }
    }
    (dead, found)
}

/// The lines that are not in blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence && !line.starts_with("    ")
    })
}

/// Headings as links name them.
fn prose_headings(text: &str) -> impl Iterator<Item = String> + '_ {
    prose(text).filter(|line| line.starts_with('#')).map(|line| {
        line.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

/// By the program for it: the documents are short.
fn difference(expected: &str, found: &str) -> String {
    let folder = std::env::temp_dir();
    let names = ["expected", "found"].map(|name| folder.join(format!("impersonate-{}-{name}", std::process::id())));
    for (name, text) in names.iter().zip([expected, found]) {
        let _ = File::create(name).and_then(|mut file| file.write_all(text.as_bytes()));
    }
    let output = std::process::Command::new("diff").arg("-u").args(&names).output();
    for name in &names {
        let _ = fs::remove_file(name);
    }
    output.map_or_else(
        |error| format!("there is no diff: {error}"),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}
