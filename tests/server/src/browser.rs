//! A browser without a screen, told what to do by the DevTools protocol through a pipe.
//!
//! It is the one that `scripts/fetch-tools.sh chromium-headless-shell` unpacks, else one in the usual places. What a
//! page does is taken down: requests, and whatever it or the browser says about it.

use crate::{fetched, guard, unique};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Ends with this value.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    folder: PathBuf,
    session: Option<String>,
    last: u64,
    events: Vec<Value>,
}

fn program() -> PathBuf {
    fetched(
        "chromium-headless-shell",
        &["/usr/bin/chromium-headless-shell", "/usr/bin/chromium"],
    )
}

impl Browser {
    /// # Panics
    /// When it can't be started.
    pub fn start() -> Browser {
        let folder = guard::folder().join(unique("browser"));
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("sh");
        // It reads commands from 3 and writes answers to 4.
        command
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(program())
            .args([
                "--headless",
                "--remote-debugging-pipe",
                "--disable-gpu",
                "--no-first-run",
            ])
            // Its own walls need an ordinary user, and leave to make name spaces; what it is shown here is ours.
            .arg("--no-sandbox")
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .env("TMPDIR", &folder)
            .env("HOME", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("log")).unwrap());
        let mut process = command.spawn().expect("sh can be run");
        let commands = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    break;
                };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Browser {
            process,
            commands,
            messages,
            folder,
            session: None,
            last: 0,
            events: Vec::new(),
        };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attached = browser.call(
            "Target.attachToTarget",
            &json!({ "targetId": target["targetId"], "flatten": true }),
        );
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// What the browser answers to a command.
    ///
    /// # Panics
    /// When that is an error, or nothing for a minute.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        self.commands.flush().unwrap();
        loop {
            let mut message = self.next(method);
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    #[track_caller]
    fn next(&mut self, waiting_for: &str) -> Value {
        self.messages.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            panic!("the browser says nothing to {waiting_for}: {error}\n{log}");
        })
    }

    /// Opens a page that is given, in a window of that size. Afterwards [`Browser::noticed`] begins anew with it.
    #[track_caller]
    pub fn open(&mut self, html: &str, width: u32, height: u32) {
        let file = self.folder.join("page.html");
        fs::write(&file, html).unwrap();
        self.call(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 }),
        );
        self.events.clear();
        let url = format!("file://{}", file.display());
        let navigated = self.call("Page.navigate", &json!({ "url": url }));
        assert!(navigated["errorText"].is_null(), "{navigated}");
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.next("a page's load");
            self.events.push(event);
        }
        // What comes after the load still comes before this.
        self.value("new Promise(done => setTimeout(done, 300))");
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let mut answer = self.call(
            "Runtime.evaluate",
            &json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }),
        );
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].take()
    }

    /// Light or dark, and on a screen or on paper.
    pub fn prefer(&mut self, scheme: &str, media: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({ "media": media, "features": features }),
        );
    }

    /// What the page asked for beside itself, and what was said about it on the console, in words.
    pub fn noticed(&self) -> Vec<String> {
        let mut noticed = Vec::new();
        for event in &self.events {
            let parameters = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Network.requestWillBeSent" => {
                    let url = parameters["request"]["url"].as_str().unwrap_or_default();
                    if !url.starts_with("file://") || !url.ends_with("/page.html") {
                        noticed.push(format!("request: {url}"));
                    }
                }
                "Runtime.consoleAPICalled" => noticed.push(format!("console: {}", parameters["args"])),
                "Runtime.exceptionThrown" => noticed.push(format!("exception: {}", parameters["exceptionDetails"])),
                "Log.entryAdded" => noticed.push(format!("log: {}", parameters["entry"]["text"])),
                _ => (),
            }
        }
        noticed
    }

    /// A picture of the whole page, as PNG.
    #[track_caller]
    pub fn screenshot(&mut self) -> Vec<u8> {
        let answer = self.call(
            "Page.captureScreenshot",
            &json!({ "format": "png", "captureBeyondViewport": true }),
        );
        from_base64(answer["data"].as_str().unwrap_or_default())
    }

    /// The page as it is printed, as PDF.
    #[track_caller]
    pub fn print(&mut self) -> Vec<u8> {
        let answer = self.call("Page.printToPDF", &json!({ "printBackground": false }));
        from_base64(answer["data"].as_str().unwrap_or_default())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    digits
        .chunks(4)
        .flat_map(|chunk| {
            let bits = chunk
                .iter()
                .enumerate()
                .fold(0_u32, |bits, (at, digit)| bits | u32::from(*digit) << (18 - 6 * at));
            bits.to_be_bytes().into_iter().skip(1).take(chunk.len() - 1)
        })
        .collect()
}
