//! `impersonate.report()`: what it says, to whom, and how it looks in a browser.
//!
//! With `IMPERSONATE_SCREENSHOTS=FOLDER` the browser's pictures are kept there.

use impersonate_server_tests::{fails_with, shared, unique, Browser, Cluster, Database};
use postgres::Client;
use serde_json::Value;
use std::sync::OnceLock;

/// Names that would like to be markup, to turn text around, or not to be seen.
const HOSTILE: [&str; 4] = [
    "<script>window.pwned=1</script>",
    "x\" onload=\"window.pwned=1\" y='<img src=http://192.0.2.1/x onerror=alert(1)>",
    "safe\u{202E}txt.exe\u{2066}\u{200B}\u{7}",
    "\u{5D0}\u{5DC}\u{5D9}\u{5E2}\u{5D6}\u{5E8} & <b>\u{1F600}",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A database with a bit of everything on record: switches of several people, by hostile names as well, refusals,
/// failures, a violation and a termination, rights given and taken.
fn busy() -> &'static Database<'static> {
    static BUSY: OnceLock<(Cluster, String)> = OnceLock::new();
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let (cluster, name) = BUSY.get_or_init(|| {
            let cluster = Cluster::start_new();
            let name = cluster.database("busy").name;
            (cluster, name)
        });
        let database = Database {
            cluster,
            name: name.clone(),
        };
        fill(&database);
        database
    })
}

fn fill(database: &Database) {
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE staff; CREATE SCHEMA hr; GRANT USAGE ON SCHEMA hr TO PUBLIC;
             CREATE TABLE hr.employee (id int PRIMARY KEY, name text, salary numeric);
             CREATE TABLE hr.\"odd (select)<i>\" (id int);
             CREATE TABLE hr.secret (id int);
             INSERT INTO hr.employee SELECT n, 'n' || n, n FROM generate_series(1, 20) n;
             GRANT ALL ON hr.employee, hr.\"odd (select)<i>\" TO PUBLIC;
             CREATE ROLE bob LOGIN IN ROLE staff; CREATE ROLE carol LOGIN IN ROLE staff; CREATE ROLE dave LOGIN;
             CREATE ROLE boss LOGIN SUPERUSER",
        )
        .unwrap();
    let targets = ["bob", "carol", "dave"];
    for (at, person) in ["anna", "helpdesk_tom", "erik"].iter().enumerate() {
        admin
            .batch_execute(&format!(
                "CREATE ROLE {person} LOGIN IN ROLE staff; GRANT \"SET USER\" (bob, carol, dave) TO {person}"
            ))
            .unwrap();
        for turn in 0..6 - at {
            let mut client = database.connect(person);
            let target = targets[(turn * turn + at) % 3];
            client
                .simple_query(&format!("SELECT setuser('{target}', reason => 'INC-{}')", 4700 + turn))
                .unwrap();
            client
                .simple_query("SELECT count(*) FROM hr.employee WHERE salary > 3")
                .unwrap();
            client
                .simple_query("UPDATE hr.employee SET salary = salary + 1 WHERE id = 7")
                .unwrap();
            if turn % 2 == 0 {
                fails_with("42501", client.simple_query("SELECT * FROM hr.secret"));
                fails_with("42P01", client.simple_query("SELECT * FROM hr.nowhere"));
            }
            if turn % 3 != 2 {
                client.simple_query("SELECT setuser()").unwrap();
            }
            fails_with("42501", client.simple_query("SELECT setuser('boss')"));
        }
    }
    for (at, name) in HOSTILE.iter().enumerate() {
        let other = HOSTILE[(at + 1) % HOSTILE.len()];
        // 63 bytes are all that a name has.
        let cut = |name: &str| {
            let mut end = name.len().min(60);
            while !name.is_char_boundary(end) {
                end -= 1;
            }
            name[..end].to_owned()
        };
        let (person, target) = (cut(name), cut(other));
        for role in [&person, &target] {
            let role = quoted(role);
            let _ = admin.batch_execute(&format!("CREATE ROLE {role} LOGIN"));
        }
        admin
            .batch_execute(&format!(
                "GRANT \"SET USER\" TO {}, {}",
                quoted(&target),
                quoted(&person)
            ))
            .unwrap();
        let mut client = database
            .cluster
            .config(&person, &database.name)
            .application_name("</td><script>window.pwned=2</script>")
            .connect(postgres::NoTls)
            .unwrap();
        let begin = format!("SELECT setuser({}, reason => {})", literal(&target), literal(name));
        client.simple_query(&begin).unwrap();
        client.simple_query("SELECT * FROM hr.\"odd (select)<i>\"").unwrap();
        let fails = format!(
            "SELECT {}::int /* </span><script>window.pwned=3</script> */",
            literal(name)
        );
        client.simple_query(&fails).unwrap_err();
        fails_with("42501", client.simple_query("SELECT setuser('boss')"));
    }
    // One that the administrator runs into, and one that is ended.
    let mut anna = database.connect("anna");
    anna.simple_query("SELECT setuser('bob', reason => 'INC-4711')")
        .unwrap();
    fails_with("55006", admin.batch_execute("REVOKE staff FROM anna"));
    let pid: i32 = admin
        .query_one("SELECT pid FROM impersonate.active WHERE impersonator = 'anna'", &[])
        .unwrap()
        .get(0);
    admin.execute("SELECT impersonate.terminate($1)", &[&pid]).unwrap();
    admin
        .batch_execute("REVOKE \"SET USER\" (dave) FROM erik; SELECT impersonate.audit_sync()")
        .unwrap();
}

fn report(client: &mut Client, arguments: &str) -> String {
    client
        .query_one(&format!("SELECT impersonate.report({arguments})"), &[])
        .unwrap()
        .get(0)
}

/// The part of a page between two words.
fn part<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let begin = page.find(from).unwrap_or_else(|| panic!("no {from:?} in the page"));
    let rest = &page[begin..];
    &rest[..rest.find(to).unwrap_or(rest.len())]
}

fn section<'a>(page: &'a str, id: &str) -> &'a str {
    part(page, &format!("<section id=\"{id}\""), "</section>")
}

fn keep(name: &str, picture: &[u8]) {
    if let Some(folder) = std::env::var_os("IMPERSONATE_SCREENSHOTS").filter(|folder| !folder.is_empty()) {
        std::fs::write(std::path::Path::new(&folder).join(name), picture).unwrap();
    }
}

// ------------------------------------------------------------------------------------------------------- in a browser ---

/// What is said of every element with text: no contrast below WCAG's 4.5, and nothing that is cut off or sticks out.
const COMPLAINTS: &str = r#"
(() => {
  const complaints = [];
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = x => { x /= 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('svg title')) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    const boxes = [...range.getClientRects()].filter(box => box.width > 0);
    if (!boxes.length) continue;
    seen += 1;
    const style = getComputedStyle(element);
    const svg = element.closest('svg');
    const [one, other] = [light(rgb(svg ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)}: ${walker.currentNode.data.slice(0, 40)}`);
    if (parseFloat(style.fontSize) < 11) complaints.push(`small: ${walker.currentNode.data.slice(0, 40)}`);
    for (const box of boxes) {
      if (element.closest('.cards thead')) continue;
      if (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5) {
        complaints.push(`sticks out to ${box.right}: ${walker.currentNode.data.slice(0, 40)}`);
        break;
      }
    }
  }
  if (seen < 50) complaints.push(`only ${seen} texts`);
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption || !table.caption.textContent) complaints.push('a table without a caption');
    for (const head of table.querySelectorAll('th')) if (!head.scope) complaints.push('a th without scope');
  }
  for (const cell of document.querySelectorAll('.cards td')) {
    if (cell.childNodes.length > 1) complaints.push(`a cell of several parts: ${cell.textContent.slice(0, 40)}`);
  }
  for (const drawing of document.querySelectorAll('svg')) {
    const hidden = drawing.closest('[aria-hidden=true]') || drawing.parentElement.closest('svg');
    if (!hidden && !drawing.getAttribute('aria-label')) complaints.push('an svg without a label');
  }
  for (const section of document.querySelectorAll('section')) {
    const label = document.getElementById(section.getAttribute('aria-labelledby'));
    if (!label || label.tagName !== 'H2') complaints.push('a section without its heading');
  }
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  if (new Set(ids).size !== ids.length) complaints.push('an id twice');
  for (const link of document.querySelectorAll('a')) {
    if (!document.getElementById(link.getAttribute('href').slice(1))) complaints.push(`a dead link: ${link.href}`);
  }
  if (document.querySelectorAll('h1').length !== 1) complaints.push('not one h1');
  if (!document.documentElement.lang) complaints.push('no language');
  return complaints;
})()
"#;

/// What is wider than the window, if the page is.
const WIDE: &str = r#"
(() => {
  const root = document.documentElement;
  const width = Math.min(root.clientWidth, WINDOW);
  if (root.scrollWidth <= width) return [];
  return [`${root.scrollWidth} px`].concat([...document.querySelectorAll('body *')]
    .filter(element => element.getBoundingClientRect().right > width)
    .map(element => `${element.tagName}.${element.className}: ${element.textContent.slice(0, 60)}`).slice(0, 20));
})()
"#;

/// What the page is made of is the page's own: no element or attribute that the audit brought.
const FOREIGN: &str = r#"
(() => {
  const known = new Set(('HTML HEAD META TITLE STYLE BODY HEADER MAIN FOOTER SECTION NAV H1 H2 P DL DIV DT DD UL LI A B '
    + 'SMALL SPAN BDI CODE TIME TABLE CAPTION THEAD TBODY TR TH TD BR WBR svg rect line path text title').split(' '));
  const found = [];
  for (const element of document.querySelectorAll('*')) {
    if (!known.has(element.tagName)) found.push(element.tagName);
    for (const attribute of element.attributes) {
      if (/^on/i.test(attribute.name) || /^(src|srcdoc|action|style|formaction|ping)$/i.test(attribute.name)) {
        found.push(`${element.tagName} ${attribute.name}`);
      }
      if (attribute.name === 'href' && !attribute.value.startsWith('#')) found.push(attribute.value);
    }
  }
  if (window.pwned) found.push(`a script ran: ${window.pwned}`);
  return found;
})()
"#;

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[track_caller]
fn looks_right(browser: &mut Browser, page: &str, name: &str) {
    for (width, height) in [(320, 640), (390, 844), (768, 1024), (1160, 900), (1280, 900)] {
        for scheme in ["light", "dark"] {
            browser.prefer(scheme, "screen");
            browser.open(page, width, height);
            let here = format!("{name}, {width} px, {scheme}");
            assert_eq!(browser.noticed(), [""; 0], "{here}");
            let wide = browser.value(&WIDE.replace("WINDOW", &width.to_string()));
            assert_eq!(strings(&wide), [""; 0], "{here}");
            let complaints = browser.value(COMPLAINTS);
            assert_eq!(strings(&complaints), [""; 0], "{here}");
            let foreign = browser.value(FOREIGN);
            assert_eq!(strings(&foreign), [""; 0], "{here}");
            let ground = browser.value("getComputedStyle(document.body).backgroundColor");
            let dark = ground == "rgb(17, 22, 29)";
            assert_eq!(dark, scheme == "dark", "{here}: {ground}");
            keep(&format!("{name}-{width}-{scheme}.png"), &browser.screenshot());
        }
    }
    // On paper it is light, whatever the screen is.
    browser.prefer("dark", "print");
    let ground = browser.value("getComputedStyle(document.body).backgroundColor");
    assert_eq!(ground, "rgb(255, 255, 255)", "{name}, printed");
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        &serde_json::json!({ "width": 794, "height": 1123, "deviceScaleFactor": 1, "mobile": false }),
    );
    keep(&format!("{name}-printed.png"), &browser.screenshot());
    let printed = browser.print();
    assert!(printed.starts_with(b"%PDF") && printed.len() > 5000, "{name}, printed");
    keep(&format!("{name}.pdf"), &printed);
}

#[test]
fn in_a_browser_the_page_fits_loads_nothing_and_says_nothing() {
    let mut admin = busy().connect("postgres");
    let page = report(&mut admin, "");
    looks_right(&mut Browser::start(), &page, "busy");
}

#[test]
fn in_a_browser_an_empty_period_is_a_page_too() {
    let mut admin = busy().connect("postgres");
    let page = report(&mut admin, "'2001-01-01 00:00+00', '2001-02-01 00:00+00'");
    let mut browser = Browser::start();
    browser.prefer("light", "screen");
    browser.open(&page, 390, 844);
    assert_eq!(browser.noticed(), [""; 0]);
    assert_eq!(strings(&browser.value(FOREIGN)), [""; 0]);
    keep("empty-390-light.png", &browser.screenshot());
    let words = browser.value("document.body.innerText");
    for expected in [
        "Quiet. Nothing is on record",
        "2001-01-01 00:00:00",
        "31 d",
        "Nothing was refused.",
    ] {
        assert!(words.as_str().unwrap().contains(expected), "no {expected:?} in {words}");
    }
}

/// The browser test would notice: a page that breaks each rule is complained about.
#[test]
fn in_a_browser_what_must_not_be_is_noticed() {
    let mut browser = Browser::start();
    browser.prefer("light", "screen");
    browser.open(
        "<!DOCTYPE html><meta name='viewport' content='width=device-width'><body style='color:#aaa'><div style='width:900px;white-space:nowrap'>wide</div>
         <table><tr><th>x</table><svg></svg><script>window.pwned = 1; console.log('hello')</script>
         <img src='http://127.0.0.1:9/nothing' onerror='0'><p style='margin-left:700px'>out",
        390,
        844,
    );
    let noticed = browser.noticed().join("; ");
    for expected in ["console: ", "hello", "request: http://127.0.0.1:9/nothing"] {
        assert!(noticed.contains(expected), "{noticed}");
    }
    let complaints = browser.value(COMPLAINTS);
    let complaints = strings(&complaints).join("; ");
    for expected in [
        "contrast 2.3",
        "sticks out",
        "without a caption",
        "without scope",
        "without a label",
        "not one h1",
    ] {
        assert!(complaints.contains(expected), "no {expected} in {complaints}");
    }
    let foreign = browser.value(FOREIGN);
    let foreign = strings(&foreign).join("; ");
    for expected in ["IMG src", "IMG onerror", "SCRIPT", "a script ran"] {
        assert!(foreign.contains(expected), "no {expected} in {foreign}");
    }
    let wide = browser.value(&WIDE.replace("WINDOW", "390"));
    assert!(strings(&wide)[1].starts_with("DIV.: wide"), "{wide}");
}

// ---------------------------------------------------------------------------------------------------- what it says ---

/// What a browser would show of a piece of the page: without tags, and characters for their numbers.
fn words(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '&']) {
        text.push_str(&rest[..at]);
        let until = if rest[at..].starts_with('<') { '>' } else { ';' };
        let end = at + rest[at..].find(until).unwrap();
        match &rest[at + 1..end] {
            "wbr" => (),
            "lt" => text.push('<'),
            "gt" => text.push('>'),
            "amp" => text.push('&'),
            "quot" => text.push('"'),
            number if number.starts_with("#x") => {
                text.push(char::from_u32(u32::from_str_radix(&number[2..], 16).unwrap()).unwrap());
            }
            _ => text.push(' '),
        }
        rest = &rest[end + 1..];
    }
    text.push_str(rest);
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ,", ",")
}

/// A row of a table for each `tr` of a section's body.
fn rows(section: &str) -> Vec<String> {
    section
        .split("<tr>")
        .skip(1)
        .map(|row| words(part(row, "", "</tr>")))
        .collect()
}

#[test]
fn what_the_page_says_is_what_the_audit_says() {
    let mut admin = busy().connect("postgres");
    let page = report(&mut admin, "");
    let count = |admin: &mut Client, sql: &str| -> i64 { admin.query_one(sql, &[]).unwrap().get(0) };
    let figures = words(section(&page, "glance"));
    for (label, sql) in [
        (
            "Impersonations",
            "SELECT count(*) FROM impersonate.audit_impersonations",
        ),
        (
            "People",
            "SELECT count(DISTINCT impersonator) FROM impersonate.audit_impersonations",
        ),
        (
            "Roles acted as",
            "SELECT count(DISTINCT target) FROM impersonate.audit_impersonations",
        ),
        (
            "Statements",
            "SELECT sum(statements)::bigint FROM impersonate.audit_impersonations",
        ),
        (
            "Refused",
            "SELECT count(*) FROM impersonate.audit WHERE event = 'DENIED'",
        ),
        (
            "Rights changed",
            "SELECT count(*) FROM impersonate.audit WHERE event IN ('GRANT', 'REVOKE')",
        ),
    ] {
        let expected = format!("{label} {}", count(&mut admin, sql));
        assert!(figures.contains(&expected), "no {expected:?} in {figures}");
    }
    let failed = count(
        &mut admin,
        "SELECT sum(failures)::bigint FROM impersonate.audit_impersonations",
    );
    assert!(
        failed > 10 && figures.contains(&format!("{failed} failed")),
        "{figures}"
    );
    assert!(figures.contains("1 violation and 1 connection was ended"), "{figures}");

    // The matrix: each count is in its row and its column.
    let matrix = part(section(&page, "whom"), "<table class=\"matrix", "</table>");
    let heads: Vec<String> = part(matrix, "<thead>", "</thead>")
        .split("<th ")
        .skip(2)
        .map(|head| words(&format!("<{head}")))
        .collect();
    let pairs = admin
        .query(
            "SELECT impersonator, target, count(*) FROM impersonate.audit_impersonations
              WHERE impersonator IN ('anna', 'helpdesk_tom', 'erik') GROUP BY 1, 2",
            &[],
        )
        .unwrap();
    assert!(pairs.len() >= 6, "{}", pairs.len());
    for pair in pairs {
        let (person, target, count): (&str, &str, i64) = (pair.get(0), pair.get(1), pair.get(2));
        let row = part(
            matrix,
            &format!(
                "<th scope=\"row\"><bdi class=\"n\">{}<",
                person.replace("desk_", "desk_<wbr>")
            ),
            "</tr>",
        );
        let cells: Vec<String> = row
            .split("<td")
            .skip(1)
            .map(|cell| words(&format!("<{cell}")))
            .collect();
        let at = heads.iter().position(|head| head == target).unwrap();
        assert_eq!(cells[at], count.to_string(), "{person} as {target}");
    }

    // Each impersonation, with what it was for and how it ended.
    let listed = rows(section(&page, "each"));
    assert_eq!(
        listed.len() as i64 - 1,
        count(&mut admin, "SELECT count(*) FROM impersonate.audit_impersonations")
    );
    assert!(
        listed[1].contains("anna bob INC-4711") && listed[1].contains("terminated"),
        "{}",
        listed[1]
    );
    // What was refused, and why.
    let refused = words(section(&page, "refused"));
    let attempts = count(
        &mut admin,
        "SELECT count(*) FROM impersonate.audit WHERE event = 'DENIED' AND session_user_name = 'anna'",
    );
    assert!(refused.contains(&format!("anna boss {attempts} ")), "{refused}");
    assert!(
        refused.contains("Criterion A1: \"anna\" holds no SET USER right over \"boss\""),
        "{refused}"
    );
    // What was touched, and how: a name that looks like a way of touching is a name.
    let touched = rows(section(&page, "touched"));
    let of = |relation: &str| touched.iter().find(|row| row.starts_with(relation)).unwrap().clone();
    let updates = count(
        &mut admin,
        "SELECT count(*) FROM impersonate.audit WHERE command_tag = 'UPDATE'",
    );
    let reads = count(
        &mut admin,
        "SELECT count(*) FROM impersonate.audit_tables WHERE relation = 'hr.employee' AND 'select' = ANY (access)",
    );
    assert!(
        of("hr.employee").starts_with(&format!("hr.employee {reads} {updates} anna, erik, helpdesk_tom ")),
        "{}",
        of("hr.employee")
    );
    assert!(
        of("hr.\"odd (select)<i>\"").starts_with("hr.\"odd (select)<i>\" 4 "),
        "{touched:?}"
    );
    // What failed.
    let failed = words(section(&page, "failed"));
    for (sqlstate, meaning) in [
        ("42501", "not permitted"),
        ("42P01", "no such table"),
        ("22P02", "data"),
    ] {
        let (statements, people): (i64, i64) = {
            let row = admin
                .query_one(
                    "SELECT count(*), count(DISTINCT session_user_name) FROM impersonate.audit
                      WHERE event = 'STATEMENT' AND sqlstate = $1 AND impersonation_id IS NOT NULL",
                    &[&sqlstate],
                )
                .unwrap();
            (row.get(0), row.get(1))
        };
        let expected = format!("{sqlstate} {meaning} {statements} {people}");
        assert!(
            statements > 0 && failed.contains(&expected),
            "no {expected:?} in {failed}"
        );
    }
    assert!(failed.contains("SELECT * FROM hr.secret"), "{failed}");
    // Violations and ends.
    let criteria = words(section(&page, "criteria"));
    assert!(
        criteria.contains("VIOLATION postgres") && criteria.contains("REVOKE staff FROM anna"),
        "{criteria}"
    );
    assert!(
        criteria.contains("TERMINATED anna bob") && criteria.contains("by: postgres"),
        "{criteria}"
    );
    // Rights, and the record: what is printed to verify by does verify.
    let record = words(section(&page, "record"));
    assert!(record.contains("REVOKE \"SET USER\" (dave) FROM erik"), "{record}");
    let statement = part(&record, "SELECT * FROM impersonate.audit_verify", ";");
    let verified = admin.query_one(statement, &[]).unwrap();
    assert!(verified.get::<_, bool>(0), "{statement}");
    assert!(verified.get::<_, i64>(1) > 50);
    let wrong = statement.replacen("\\x", "\\xff", 1).replacen("ff", "", 0);
    assert_ne!(wrong, statement);
}

#[test]
fn hostile_names_and_reasons_are_all_there_as_text() {
    let mut admin = busy().connect("postgres");
    let page = report(&mut admin, "");
    assert!(page.is_ascii());
    let shown = words(&page);
    for expected in [
        "<script>window.pwned=1</script>",
        "x\" onload=\"window.pwned=1\" y='<img src=http://192.0.2.1/x onerror=alert(1)>",
        "</td><script>window.pwned=2</script>",
        "\u{5D0}\u{5DC}\u{5D9}\u{5E2}\u{5D6}\u{5E8} & <b>\u{1F600}",
        "U+202E txt.exe U+2066 U+200B U+0007",
        "</span><script>window.pwned=3</script>",
    ] {
        assert!(shown.contains(expected), "no {expected:?}");
    }
    for never in ["<script", "<img", "\u{202E}", "onload=\"", "&#x202E;", "&#x7;"] {
        assert!(!page.contains(never), "{never:?}");
    }
}

/// L8: whoever may read the audit may make a report of it, and nobody else. Verification is granted by itself.
#[test]
fn whoever_may_read_the_audit_may_make_a_report() {
    let database = shared().database("readers");
    let mut admin = database.connect("postgres");
    let (nobody, auditor) = (unique("nobody"), unique("auditor"));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {nobody} LOGIN; CREATE ROLE {auditor} LOGIN;
             GRANT SELECT ON impersonate.audit TO {auditor};
             GRANT \"SET USER\" ({nobody}) TO {auditor}"
        ))
        .unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let refused = fails_with(
        "42501",
        database.connect(&nobody).query("SELECT impersonate.report()", &[]),
    );
    assert_eq!(refused.message, "permission denied for table audit");
    let mut client = database.connect(&auditor);
    let page = report(&mut client, "");
    let glance = words(section(&page, "glance"));
    assert!(glance.contains("Record not verified. That needs"), "{glance}");
    assert!(glance.contains("Rights changed 1"), "{glance}");
    assert!(words(part(&page, "<footer>", "</footer>")).contains(&format!("by {auditor} with")));
    admin
        .batch_execute(&format!(
            "GRANT EXECUTE ON FUNCTION impersonate.audit_verify(bigint, bigint, bytea, text) TO {auditor}"
        ))
        .unwrap();
    // In a transaction that may write nothing, too; and nothing of a search path gets in between.
    client
        .batch_execute(
            "CREATE TEMP TABLE audit (event_time timestamptz);
             CREATE FUNCTION pg_temp.count(text) RETURNS bigint LANGUAGE sql AS 'SELECT 4711::bigint';
             SET search_path = pg_temp, pg_catalog; BEGIN READ ONLY",
        )
        .unwrap();
    let page = report(&mut client, "");
    let glance = words(section(&page, "glance"));
    assert!(glance.contains("Record intact. 1 row was verified"), "{glance}");
    assert!(
        glance.contains("Rights changed 1") && !page.contains("4,711"),
        "{glance}"
    );
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(
        client.query_one("SHOW search_path", &[]).unwrap().get::<_, String>(0),
        "pg_temp, pg_catalog"
    );
}

#[test]
fn a_period_has_its_first_moment_and_not_its_last() {
    let mut admin = busy().connect("postgres");
    let (first, second): (i64, i64) = {
        let row = admin
            .query_one(
                "SELECT min(event_id), max(event_id) FROM impersonate.audit WHERE event = 'GRANT'",
                &[],
            )
            .unwrap();
        (row.get(0), row.get(1))
    };
    let time = |id: i64| format!("(SELECT event_time FROM impersonate.audit WHERE event_id = {id})");
    let page = report(&mut admin, &format!("{}, {}", time(first), time(second)));
    let record = words(section(&page, "record"));
    assert!(
        record.contains(&format!("events {first} to {}", second - 1)),
        "{record}"
    );
    let page = report(
        &mut admin,
        &format!("{}, {} + interval '1 microsecond'", time(first), time(second)),
    );
    let record = words(section(&page, "record"));
    assert!(record.contains(&format!("events {first} to {second}")), "{record}");
    // Without bounds, or with those that are none, it is all there is.
    let whole = words(section(&report(&mut admin, ""), "glance"));
    for all in [
        "NULL, NULL",
        "'-infinity', 'infinity'",
        "\"from\" => '2000-01-01', \"to\" => now() + interval '1 h'",
    ] {
        assert_eq!(words(section(&report(&mut admin, all), "glance")), whole, "{all}");
    }
    for never in ["now(), now()", "'2026-01-02', '2026-01-01'", "'infinity', '-infinity'"] {
        let result = admin.query(&format!("SELECT impersonate.report({never})"), &[]);
        if never.starts_with("'inf") {
            result.unwrap();
        } else {
            let error = fails_with("22023", result);
            assert_eq!(error.message, "the period of a report must begin before it ends");
        }
    }
    for far in ["'4713-01-01 BC', '294276-01-01'", "'294275-01-01', '294276-01-01'"] {
        report(&mut admin, far);
    }
}

/// An impersonation of which the period has only a part.
#[test]
fn what_began_before_and_what_goes_on_is_told_as_that() {
    let database = shared().database("part");
    let (anna, bob) = (unique("anna"), unique("bob"));
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!(
            "CREATE ROLE {anna} LOGIN; CREATE ROLE {bob} LOGIN; GRANT \"SET USER\" ({bob}) TO {anna}"
        ))
        .unwrap();
    let mut client = database.connect(&anna);
    client.simple_query(&format!("SELECT setuser('{bob}')")).unwrap();
    let between: String = admin.query_one("SELECT clock_timestamp()::text", &[]).unwrap().get(0);
    client.simple_query("SELECT 1").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let page = report(&mut admin, &format!("'{between}', NULL"));
    let each = rows(section(&page, "each"));
    assert!(
        each[1].starts_with("before ") && each[1].contains("no end in the period"),
        "{each:?}"
    );
    assert!(words(section(&page, "glance")).contains("Impersonations 1"), "{each:?}");
    let page = report(&mut admin, &format!("NULL, '{between}'"));
    let each = rows(section(&page, "each"));
    assert!(
        !each[1].starts_with("before ") && each[1].contains("no end in the period"),
        "{each:?}"
    );
}

/// L8: a record that was changed is told at the top, also when all of the period is gone.
#[test]
fn a_damaged_record_is_told_first() {
    let database = shared().database("damaged");
    let (anna, bob) = (unique("anna"), unique("bob"));
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(&format!(
            "CREATE ROLE {anna} LOGIN; CREATE ROLE {bob} LOGIN; GRANT \"SET USER\" ({bob}) TO {anna}"
        ))
        .unwrap();
    let mut times: Vec<String> = Vec::new();
    for turn in 0..3 {
        times.push(admin.query_one("SELECT clock_timestamp()::text", &[]).unwrap().get(0));
        let mut client = database.connect(&anna);
        client
            .simple_query(&format!("SELECT setuser('{bob}', reason => 'turn {turn}')"))
            .unwrap();
        client.simple_query("SELECT 1").unwrap();
        client.simple_query("SELECT setuser()").unwrap();
        admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    }
    let middle = format!("'{}', '{}'", times[1], times[2]);
    let page = report(&mut admin, &middle);
    assert!(words(section(&page, "glance")).contains("Record intact."));
    admin
        .batch_execute(&format!(
            "SET session_replication_role = replica;
             DELETE FROM impersonate.audit WHERE event_time >= '{}' AND event_time < '{}'",
            times[1], times[2]
        ))
        .unwrap();
    for period in [middle.as_str(), ""] {
        let page = report(&mut admin, period);
        let glance = words(section(&page, "glance"));
        assert!(
            glance.contains("Record damaged. From row ") && glance.contains("removed"),
            "{period}: {glance}"
        );
    }
    // A period before it is as it was.
    let before = report(&mut admin, &format!("NULL, '{}'", times[0]));
    let glance = words(section(&before, "glance"));
    assert!(glance.contains("Record intact."), "{glance}");
}

/// However much there is, the page is small, and says how much it does not show.
#[test]
fn a_hundred_thousand_events_make_a_small_page() {
    let cluster = Cluster::start_new();
    let database = cluster.database("many");
    let mut admin = database.connect("postgres");
    // The first event makes this month's partition.
    admin
        .batch_execute("CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" (bob) TO anna")
        .unwrap();
    admin
        .batch_execute("SELECT impersonate.audit_sync(); SET session_replication_role = replica")
        .unwrap();
    // 20,000 impersonations of 5 events each, of 300 people as 40 roles; each fifth refused, with 3,000 relations.
    admin
        .batch_execute(
            "INSERT INTO impersonate.audit (event_id, event_time, event, user_name, session_user_name, role_name,
                 impersonation_id, database, pid, session_id, statement, relations, sqlstate, reason, detail)
             SELECT 10 + n, now() - (100000 - n) * interval '1 ms',
                    (ARRAY['SETUSER', 'STATEMENT', 'STATEMENT', 'DENIED', 'RESETUSER'])[1 + n % 5],
                    'role ' || i % 40, 'person ' || i % 300, 'role ' || i % 40,
                    md5(i::text)::uuid, 'many', 1, 'x', repeat('SELECT ', CASE WHEN n % 500 < 5 THEN 5000 ELSE 2 END),
                    CASE n % 5 WHEN 1 THEN ARRAY['s.t' || i % 3000 || ' (select, insert)'] END,
                    CASE n % 5 WHEN 2 THEN '42' || lpad((i % 100)::text, 3, '0') ELSE '00000' END,
                    repeat('because ', CASE WHEN n % 500 < 5 THEN 500 ELSE 1 END), jsonb_build_object('target', 'wanted ' || i % 500, 'message', repeat('no ', CASE WHEN n % 500 < 5 THEN 999 ELSE 3 END))
               FROM (SELECT n, n / 5 AS i FROM generate_series(0, 99999) n) g",
        )
        .unwrap();
    let begun = std::time::Instant::now();
    let page = report(&mut admin, "");
    let took = begun.elapsed();
    println!("{} bytes in {took:?}", page.len());
    assert!(page.len() < 700_000, "{} bytes", page.len());
    assert!(page.len() > 100_000, "{} bytes", page.len());
    let shown = words(&page);
    for expected in [
        "Impersonations 20,000",
        "People 300",
        "Roles acted as 40",
        "Statements 40,000 20,000 failed",
        "and 19,900 more impersonations",
        "and 286 more people",
        "and 2,900 more relations",
        "and 80 more SQLSTATEs",
        "and 19,950 more statements",
        "Record damaged.",
    ] {
        assert!(shown.contains(expected), "no {expected:?}");
    }
    assert!(
        section(&page, "when").contains("impersonations that began"),
        "no density"
    );
    let mut browser = Browser::start();
    browser.prefer("light", "screen");
    browser.open(&page, 390, 844);
    assert_eq!(browser.noticed(), [""; 0]);
    assert_eq!(browser.value("document.documentElement.scrollWidth"), 390);
    browser.open(&page, 1280, 900);
    let wide = browser.value("document.documentElement.scrollWidth");
    assert!(wide.as_u64().unwrap() <= 1280, "{wide}");
    assert_eq!(strings(&browser.value(COMPLAINTS)), [""; 0]);
    keep("many-1280-light.png", &browser.screenshot());
}

/// The page is ASCII, so a database that cannot say a name in its own encoding can say it here.
#[test]
fn in_other_encodings_the_page_is_the_same() {
    let cluster = shared();
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let name = unique(&encoding.to_lowercase());
        let mut owner = cluster.connect("postgres", "postgres");
        owner
            .batch_execute(&format!(
                "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            ))
            .unwrap();
        let mut admin = cluster.connect("postgres", &name);
        let (anna, bob) = (unique("anna"), unique("bob"));
        admin
            .batch_execute(&format!(
                "CREATE EXTENSION impersonate; CREATE ROLE {anna} LOGIN; CREATE ROLE {bob} LOGIN;
                 GRANT \"SET USER\" ({bob}) TO {anna}"
            ))
            .unwrap();
        // Bytes as they come: what each encoding makes of them is its own.
        let text = match encoding {
            "LATIN1" => "U&'r\\00E9sum\\00E9'",
            "EUC_JP" => "U&'\\65E5\\672C'",
            _ => "E'\\xff\\xfe caf\\xc3\\xa9'",
        };
        let script = format!(
            "SET client_encoding = {};\nSELECT setuser('{bob}', reason => {text});\n",
            if encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" }
        );
        let said = cluster.psql(&anna, &name, &script);
        assert!(said.ok && said.stderr.is_empty(), "{encoding}: {}", said.stderr);
        admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
        let page = report(&mut admin, "");
        assert!(page.is_ascii(), "{encoding}");
        let expected = match encoding {
            "LATIN1" => "r\u{e9}sum\u{e9}",
            "EUC_JP" => "\u{65E5}\u{672C}",
            _ => "\u{FFFD}\u{FFFD} caf\u{e9}",
        };
        let each = words(section(&page, "each"));
        assert!(each.contains(expected), "{encoding}: no {expected:?} in {each}");
    }
}

/// What is on record can be read where nothing is recorded: without the library preloaded, and on a standby (N1).
#[test]
fn without_preloading_and_on_a_standby_the_report_is_the_same() {
    let mut cluster = Cluster::builder()
        .setting("cluster_name", "primary")
        .setting("full_page_writes", "on")
        .start();
    let name = cluster.database("elsewhere").name;
    let mut admin = cluster.connect("postgres", &name);
    admin
        .batch_execute("CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" (bob) TO anna")
        .unwrap();
    let mut client = cluster.connect("anna", &name);
    client.simple_query("SELECT setuser('bob')").unwrap();
    client.simple_query("SELECT setuser()").unwrap();
    admin.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    let to: String = admin.query_one("SELECT clock_timestamp()::text", &[]).unwrap().get(0);
    let arguments = format!("NULL, '{to}'");
    let body = |page: &str| part(page, "<main>", "</main>").to_owned();
    let here = body(&report(&mut admin, &arguments));
    assert!(
        words(&here).contains("Record intact. 3 rows were verified"),
        "{}",
        words(&here)
    );

    let standby = cluster.standby("north", &[]);
    cluster.wait_for(&standby);
    let mut there = standby.connect("postgres", &name);
    assert!(there
        .query_one("SELECT pg_is_in_recovery()", &[])
        .unwrap()
        .get::<_, bool>(0));
    // From there the primary is another node.
    let elsewhere = body(&report(&mut there, &arguments)).replace("node primary, ", "");
    assert_eq!(elsewhere, here, "on a standby");
    drop((client, admin, there));

    cluster.stop();
    cluster.set("shared_preload_libraries", "");
    cluster.start();
    let mut admin = cluster.connect("postgres", &name);
    let loaded: String = admin.query_one("SHOW shared_preload_libraries", &[]).unwrap().get(0);
    assert_eq!(loaded, "");
    let page = body(&report(&mut admin, &arguments)).replace("node primary, ", "");
    assert_eq!(page, here, "without preloading");
    // Settings are unknown then, but for the one that is refused, and everything else is as it was.
    let unknown: i64 = admin
        .query_one(
            "SELECT count(*) FROM impersonate.help()
              WHERE (meaning LIKE 'known while%') <> (kind = 'setting' AND name <> 'impersonate.target')",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(unknown, 0);
}
