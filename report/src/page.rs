//! The page, from its head to its foot.

use crate::text::{attribute, content, counted, name, number};
use crate::{style, time, timeline};
use crate::{Impersonation, Incident, Listed, Pair, Report, Verified};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Rows and columns of the matrix.
const ROWS: usize = 14;
const COLUMNS: usize = 8;
/// Impersonations in the list; the time line may have more of them.
const LISTED: usize = 100;
/// Characters of a statement, a reason, an explanation.
const LONG: usize = 400;

/// The whole page.
pub fn page(report: &Report) -> String {
    let sheet = style::sheet();
    let title = format!("Impersonations in {}", attribute(&report.database, 64));
    let mut html = String::with_capacity(64 * 1024);
    let _ = write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>{title}, {} to {}</title>\n<style>{sheet}</style>\n</head>\n<body>\n",
        style::policy(&sheet),
        time::date(report.from),
        time::date(report.to),
    );
    header(&mut html, report);
    html.push_str("<main>\n");
    let sections: [(&str, &str, String); 9] = [
        ("glance", "At a glance", glance(report)),
        ("when", "When", when(report)),
        ("whom", "Who became whom", whom(report)),
        ("each", "Each impersonation", each(report)),
        ("refused", "Refused", refused(report)),
        ("touched", "What was touched", touched(report)),
        ("failed", "What failed", failed(report)),
        ("criteria", "Violations and connections ended", incidents(report)),
        ("record", "Rights and record", record(report)),
    ];
    contents(&mut html, &sections);
    for (id, heading, body) in &sections {
        let _ = write!(
            html,
            "<section id=\"{id}\" aria-labelledby=\"h-{id}\">\n<h2 id=\"h-{id}\">{heading}</h2>\n{body}\n</section>\n"
        );
    }
    html.push_str("</main>\n");
    footer(&mut html, report);
    html.push_str("</body>\n</html>\n");
    html
}

fn header(html: &mut String, report: &Report) {
    let _ = write!(
        html,
        "<header>\n<p class=\"over\">Audit report</p>\n<h1>Impersonations in {}</h1>\n<dl class=\"facts\">\
         <div><dt>From</dt><dd>{}</dd></div><div><dt>to</dt><dd>{}</dd></div><div><dt>which is</dt><dd>{}</dd></div>\
         </dl>\n</header>\n",
        name(&report.database),
        time::element(report.from),
        time::element(report.to),
        time::length(report.to.saturating_sub(report.from)),
    );
}

fn contents(html: &mut String, sections: &[(&str, &str, String)]) {
    html.push_str("<nav aria-label=\"Contents\"><ul>");
    for (id, heading, _) in sections {
        let _ = write!(html, "<li><a href=\"#{id}\">{heading}</a></li>");
    }
    html.push_str("</ul></nav>\n");
}

fn footer(html: &mut String, report: &Report) {
    let _ = writeln!(
        html,
        "<footer><p>Made {} by {} with <code>impersonate.report()</code> on PostgreSQL {}. Times are UTC. The period \
         has its first moment in it and not its last. Statements are those recorded under an impersonation.</p></footer>",
        time::element(report.made_at),
        name(&report.made_by),
        content(report.server_version.split_whitespace().next().unwrap_or_default(), 40),
    );
}

// ---------------------------------------------------------------------------------------------------------- sections ---

fn glance(report: &Report) -> String {
    let counts = &report.counts;
    let mut html = String::from("<ul class=\"verdicts\">");
    let mut verdict = |class: &str, word: &str, rest: String| {
        let _ = write!(html, "<li class=\"{class}\"><b>{word}</b> {rest}</li>");
    };
    match &report.chain.verified {
        Verified::Intact { rows } => verdict(
            "good",
            "Record intact.",
            format!(
                "{} verified: none was altered, removed or put in.",
                counted(*rows, "row was", "rows were")
            ),
        ),
        Verified::Broken { first_bad, detail, .. } => verdict(
            "bad",
            "Record damaged.",
            format!(
                "{}{}. What follows is told by a record that was changed.",
                first_bad.map_or(String::new(), |row| format!("From row {row} on: ")),
                content(detail, LONG)
            ),
        ),
        Verified::NotAllowed => verdict(
            "warn",
            "Record not verified.",
            "That needs the privilege to execute <code>impersonate.audit_verify</code>.".to_owned(),
        ),
    }
    if counts.violations + counts.terminated > 0 {
        verdict(
            "bad",
            "Look here.",
            format!(
                "<a href=\"#criteria\">{} and {}.</a>",
                counted(counts.violations, "violation", "violations"),
                counted(counts.terminated, "connection was ended", "connections were ended")
            ),
        );
    }
    if counts.denied > 0 {
        let words = counted(counts.denied, "attempt was", "attempts were");
        verdict("warn", "Refused.", format!("<a href=\"#refused\">{words} refused.</a>"));
    }
    if counts.events == 0 {
        verdict("good", "Quiet.", "Nothing is on record in this period.".to_owned());
    }
    html.push_str("</ul><dl class=\"figures\">");
    let mut figure = |label: &str, value: u64, note: String| {
        let note = if note.is_empty() {
            note
        } else {
            format!("<small>{note}</small>")
        };
        let _ = write!(html, "<div><dt>{label}</dt><dd>{}{note}</dd></div>", number(value));
    };
    figure("Impersonations", counts.impersonations, String::new());
    figure("People", counts.impersonators, "who acted as others".to_owned());
    figure("Roles acted as", counts.targets, String::new());
    figure(
        "Statements",
        counts.statements,
        format!("{} failed", number(counts.failures)),
    );
    figure("Refused", counts.denied, String::new());
    figure("Rights changed", counts.rights, String::new());
    html.push_str("</dl>");
    html
}

fn when(report: &Report) -> String {
    match timeline::draw(report) {
        Some(drawn) => {
            let cut = report.impersonations.more();
            let note = match cut {
                1.. if report.density.is_empty() => more(cut, "older impersonation", "older impersonations"),
                _ => String::new(),
            };
            format!("<p class=\"soft\">A line for each person, by what was done most.</p>{drawn}{note}")
        }
        None => none("Nobody acted as somebody else, and nobody tried."),
    }
}

fn whom(report: &Report) -> String {
    let pairs = &report.pairs;
    if pairs.rows.is_empty() {
        return none("Nobody acted as somebody else.");
    }
    let mut rows = Sums::default();
    let mut columns = Sums::default();
    let mut cells: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for Pair {
        person,
        target,
        impersonations,
    } in &pairs.rows
    {
        rows.add(person, *impersonations);
        columns.add(target, *impersonations);
        *cells.entry((person, target)).or_default() += impersonations;
    }
    let (rows, more_rows) = rows.largest(ROWS);
    let (columns, more_columns) = columns.largest(COLUMNS);
    let shown = |person: &str, target: &str| cells.get(&(person, target)).copied().unwrap_or(0);
    let most = cells.values().max().copied().unwrap_or(1).max(1);

    let mut html = String::from(
        "<p class=\"soft desk\">How many impersonations, by who logged in (down) and as whom it was done (across).</p>\
         <table class=\"matrix desk\"><caption class=\"soft\">People and the roles that they acted as</caption>\
         <thead><tr><th scope=\"col\">Person</th>",
    );
    for (target, _) in &columns {
        let _ = write!(html, "<th scope=\"col\">{}</th>", name(target));
    }
    if more_columns > 0 {
        let _ = write!(
            html,
            "<th scope=\"col\">{}</th>",
            counted(more_columns as u64, "other", "others")
        );
    }
    html.push_str("<th scope=\"col\">Together</th></tr></thead><tbody>");
    for (person, sum) in &rows {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", name(person));
        let mut rest = *sum;
        for (target, _) in &columns {
            let count = shown(person, target);
            rest -= count.min(rest);
            cell(&mut html, count, most);
        }
        if more_columns > 0 {
            let _ = write!(html, "<td class=\"sum\">{}</td>", number(rest));
        }
        let _ = write!(html, "<td class=\"sum\">{}</td></tr>", number(*sum));
    }
    html.push_str("</tbody></table>");
    if more_rows > 0 {
        html.push_str(&format!(
            "<p class=\"more desk\">and {}</p>",
            counted(more_rows as u64, "more person", "more people")
        ));
    }
    // A matrix is too wide for a phone.
    html.push_str(
        "<table class=\"phone\"><caption>People and the roles that they acted as</caption><thead><tr>\
         <th scope=\"col\">Person</th><th scope=\"col\">as</th><th scope=\"col\" class=\"r\">Times</th></tr></thead><tbody>",
    );
    let listed = pairs.rows.len().min(40);
    for pair in &pairs.rows[..listed] {
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"r\">{}</td></tr>",
            name(&pair.person),
            name(&pair.target),
            number(pair.impersonations)
        );
    }
    html.push_str("</tbody></table>");
    let hidden = pairs.total.saturating_sub(listed as u64);
    if hidden > 0 {
        html.push_str(&format!(
            "<p class=\"more phone\">and {}</p>",
            counted(hidden, "more pair", "more pairs")
        ));
    }
    if pairs.more() > 0 {
        html.push_str(&format!(
            "<p class=\"more desk\">{} are not counted here.</p>",
            counted(pairs.more(), "rarer pair", "rarer pairs")
        ));
    }
    html
}

/// Sums by name.
#[derive(Default)]
struct Sums<'a>(BTreeMap<&'a str, u64>);

impl<'a> Sums<'a> {
    fn add(&mut self, name: &'a str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// The largest, and how many others there are.
    fn largest(self, limit: usize) -> (Vec<(&'a str, u64)>, usize) {
        let mut all: Vec<_> = self.0.into_iter().collect();
        all.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        let others = all.len().saturating_sub(limit);
        all.truncate(limit);
        (all, others)
    }
}

fn cell(html: &mut String, count: u64, most: u64) {
    if count == 0 {
        // A dash for the eye, a nought for the ear.
        html.push_str("<td class=\"soft\"><span aria-label=\"0\" role=\"img\">&#x2013;</span></td>");
        return;
    }
    let quarter = count.saturating_mul(4).div_ceil(most).clamp(1, 4);
    let _ = write!(html, "<td class=\"h{quarter}\">{}</td>", number(count));
}

fn each(report: &Report) -> String {
    let all = &report.impersonations;
    if all.rows.is_empty() {
        return none("There is none.");
    }
    let mut table = Table::new(
        "Impersonations, the newest first",
        &[
            "Began",
            "Person",
            "acted as",
            "Reason",
            "Lasted",
            "Ended by",
            "Statements",
            "From",
            "No.",
        ],
    );
    let listed = &all.rows[..all.rows.len().min(LISTED)];
    for impersonation in listed {
        let Impersonation { began, ended, .. } = impersonation;
        let failures = match impersonation.failures {
            0 => String::new(),
            count => format!(", <span class=\"failed\">{} failed</span>", number(count)),
        };
        table.row(&[
            began.map_or_else(
                || format!("before {}", time::element(impersonation.seen.0)),
                time::element,
            ),
            name(&impersonation.person),
            name(&impersonation.target),
            impersonation.reason.as_deref().map_or_else(absent, bdi),
            match (began, ended) {
                (Some(began), Some(ended)) => format!("<span class=\"nb\">{}</span>", time::length(ended - began)),
                _ => String::new(),
            },
            match (ended, &impersonation.how) {
                (Some(_), Some(how)) if how == "terminated" => "<span class=\"failed\">terminated</span>".to_owned(),
                (Some(_), how) => content(how.as_deref().unwrap_or("no cause given"), 40),
                (None, _) => "<span class=\"warned\">no end in the period</span>".to_owned(),
            },
            format!("{}{failures}", number(impersonation.statements)),
            bdi(&impersonation.origin),
            impersonation.first_event.to_string(),
        ]);
    }
    let hidden = all.total.saturating_sub(listed.len() as u64);
    table.end() + &more(hidden, "impersonation", "impersonations")
}

fn refused(report: &Report) -> String {
    let denied = &report.denied;
    if denied.rows.is_empty() {
        return none("Nothing was refused.");
    }
    let mut table = Table::new(
        "Refused attempts, by person and wanted role",
        &["Person", "wanted to be", "Attempts", "The last", "Why"],
    );
    for row in &denied.rows {
        table.row(&[
            name(&row.person),
            row.target
                .as_deref()
                .map_or("<span class=\"soft\">to change rights</span>".to_owned(), name),
            number(row.attempts),
            time::element(row.last),
            bdi(&row.why),
        ]);
    }
    table.end() + &more(denied.more(), "person and role", "pairs of person and role")
}

fn touched(report: &Report) -> String {
    let relations = &report.relations;
    if relations.rows.is_empty() {
        return none("No table was touched.");
    }
    let mut table = Table::new(
        "Statements under an impersonation, by the relation that they touched and how",
        &[
            "Relation", "Read", "Inserted", "Updated", "Deleted", "Else", "By", "The last",
        ],
    );
    for row in &relations.rows {
        let mut columns = vec![bdi(&row.name)];
        columns.extend(row.accesses.iter().map(|count| match count {
            0 => String::new(),
            count => number(*count),
        }));
        let mut people: Vec<String> = row.people.iter().map(|person| name(person)).collect();
        let others = row.people_total.saturating_sub(people.len() as u64);
        if others > 0 {
            people.push(counted(others, "other", "others"));
        }
        columns.push(format!("<span>{}</span>", people.join(", ")));
        columns.push(time::element(row.last));
        table.row(&columns);
    }
    table.end() + &more(relations.more(), "relation", "relations")
}

fn failed(report: &Report) -> String {
    if report.failures.rows.is_empty() {
        return none("No statement failed.");
    }
    let mut table = Table::new(
        "Failed statements, by SQLSTATE",
        &["SQLSTATE", "Meaning", "Statements", "People"],
    );
    for row in &report.failures.rows {
        table.row(&[
            format!("<code>{}</code>", content(&row.sqlstate, 5)),
            meaning(&row.sqlstate).to_owned(),
            number(row.count),
            number(row.people),
        ]);
    }
    let kinds = table.end() + &more(report.failures.more(), "SQLSTATE", "SQLSTATEs");
    kinds + &listed("The newest of them", &report.failed, "statement", "statements")
}

fn incidents(report: &Report) -> String {
    if report.incidents.rows.is_empty() {
        return none("Nothing broke the criteria of an impersonation, and no connection was ended for it.");
    }
    listed("What happened, the newest first", &report.incidents, "event", "events")
}

fn record(report: &Report) -> String {
    let chain = &report.chain;
    let mut html = String::new();
    if let Some((first, last)) = chain.events {
        let _ = write!(html, "<p>The period has events {first} to {last}. ");
        match &chain.verified {
            Verified::Intact { .. } => {
                html.push_str("<b class=\"fine\">They are as they were stored</b>: the chain of hashes holds. ");
            }
            Verified::Broken { damage, .. } => {
                let _ = write!(
                    html,
                    "<b class=\"failed\">The chain of hashes is broken</b>: {}. ",
                    content(damage, 60)
                );
            }
            Verified::NotAllowed => html.push_str("<b class=\"warned\">They were not verified.</b> "),
        }
        if let Some(hash) = &chain.hash {
            let hash = content(hash, 64);
            let _ = write!(
                html,
                "A copy of this page elsewhere proves what was there. Verify against it later:</p>\
                 <p class=\"q\">SELECT * FROM impersonate.audit_verify(&quot;to&quot; =&gt; {last}, head =&gt; \
                 &#x27;\\x{hash}&#x27;);"
            );
        }
        html.push_str("</p>");
    }
    if report.record.rows.is_empty() && report.rights.rows.is_empty() {
        html.push_str(&none("No right was given or taken, and no row was purged."));
        return html;
    }
    if !report.rights.rows.is_empty() {
        html.push_str(&listed(
            "SET USER rights given and taken, the newest first",
            &report.rights,
            "change",
            "changes",
        ));
    }
    if !report.record.rows.is_empty() {
        html.push_str(&listed(
            "What became of the record, the newest first",
            &report.record,
            "event",
            "events",
        ));
    }
    html
}

/// Events by themselves.
fn listed(caption: &str, incidents: &Listed<Incident>, one: &str, many: &str) -> String {
    let mut table = Table::new(
        caption,
        &["When", "Event", "Person", "acted as", "What", "Outcome", "No."],
    );
    for incident in &incidents.rows {
        let statement = incident
            .statement
            .as_deref()
            .map(|statement| format!("<bdi class=\"q\">{}</bdi>", content(statement, LONG)));
        let why = incident.why.as_deref().map(bdi);
        let what = match (statement, why) {
            (Some(statement), Some(why)) => format!("<span>{statement}<br>{why}</span>"),
            (one, other) => one.or(other).unwrap_or_else(absent),
        };
        table.row(&[
            time::element(incident.at),
            content(&incident.event, 20),
            name(&incident.person),
            incident.acted_as.as_deref().map_or_else(absent, name),
            what,
            match incident.sqlstate.as_str() {
                "00000" => "<span class=\"fine\">done</span>".to_owned(),
                sqlstate => format!("<code class=\"failed\">{}</code>", content(sqlstate, 5)),
            },
            incident.event_id.to_string(),
        ]);
    }
    table.end() + &more(incidents.more(), one, many)
}

// ------------------------------------------------------------------------------------------------------------- parts ---

/// A table that becomes cards on a phone, where each value has its column's name before it.
struct Table<'a> {
    html: String,
    columns: &'a [&'a str],
}

/// Columns of numbers.
const NUMBERS: [&str; 8] = [
    "Attempts", "Read", "Inserted", "Updated", "Deleted", "Else", "People", "No.",
];

impl<'a> Table<'a> {
    fn new(caption: &str, columns: &'a [&'a str]) -> Self {
        let mut html = format!("<table class=\"cards\"><caption>{caption}</caption><thead><tr>");
        for column in columns {
            let class = if NUMBERS.contains(column) { " class=\"r\"" } else { "" };
            let _ = write!(html, "<th scope=\"col\"{class}>{column}</th>");
        }
        html.push_str("</tr></thead><tbody>");
        Table { html, columns }
    }

    fn row(&mut self, cells: &[String]) {
        self.html.push_str("<tr>");
        for (column, cell) in self.columns.iter().zip(cells) {
            let class = if NUMBERS.contains(column) { " class=\"r\"" } else { "" };
            // One element, as a phone puts the column's name beside it.
            let cell = if cell.is_empty() {
                String::new()
            } else {
                format!("<div>{cell}</div>")
            };
            let _ = write!(self.html, "<td data-l=\"{column}\"{class}>{cell}</td>");
        }
        self.html.push_str("</tr>");
    }

    fn end(mut self) -> String {
        self.html.push_str("</tbody></table>");
        self.html
    }
}

fn bdi(text: &str) -> String {
    format!("<bdi>{}</bdi>", content(text, LONG))
}

fn none(words: &str) -> String {
    format!("<p class=\"none\">{words}</p>")
}

fn absent() -> String {
    "<span class=\"soft\">none</span>".to_owned()
}

fn more(count: u64, one: &str, many: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!("<p class=\"more\">and 1 more {one}</p>"),
        count => format!("<p class=\"more\">and {} more {many}</p>", number(count)),
    }
}

/// What the commonest SQLSTATEs, and the classes of the others, stand for.
fn meaning(sqlstate: &str) -> &'static str {
    match sqlstate {
        "42501" => "not permitted",
        "42P01" => "no such table",
        "42703" => "no such column",
        "42601" => "syntax",
        "57014" => "cancelled, or out of time",
        "57P01" => "connection ended by an administrator",
        "23505" => "already there",
        "40001" => "serialization",
        "40P01" => "deadlock",
        "55P03" => "could not lock",
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "08" => "connection",
            "0A" => "not supported",
            "22" => "data",
            "23" => "constraint",
            "25" => "state of the transaction",
            "28" => "authorization",
            "40" => "rolled back",
            "42" => "syntax, names or privileges",
            "53" => "resources",
            "54" => "limits",
            "55" => "state of an object",
            "57" => "intervention",
            "58" => "system",
            "P0" => "raised by a function",
            "XX" => "internal error",
            _ => "else",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chain, Counts, Denied, Density, Failure, Mark, MarkKind, Relation};

    /// What would be a tag, end a quotation or a comment, turn text around, or is not there to be seen.
    const HOSTILE: &str =
        "</td></table><script>alert(1)</script><!-- \" onload='x' \\ &lt; ]]> \u{202E}\0\u{FEFF}\u{1F600}";

    fn listed<T>(row: T, total: u64) -> Listed<T> {
        Listed { rows: vec![row], total }
    }

    /// Each text in it is hostile, each list has more than is shown, and each number is as large as can be.
    fn hostile() -> Report {
        let text = || HOSTILE.to_owned();
        let incident = || Incident {
            event_id: i64::MAX,
            at: i64::MAX,
            event: text(),
            person: text(),
            acted_as: Some(text()),
            sqlstate: text(),
            statement: Some(HOSTILE.repeat(100)),
            why: Some(text()),
        };
        Report {
            database: text(),
            server_version: HOSTILE.replace(' ', ""),
            made_by: text(),
            made_at: i64::MIN,
            from: -211_813_488_000_000_000,
            to: 9_223_371_331_199_999_999,
            counts: Counts {
                events: u64::MAX,
                impersonations: u64::MAX,
                impersonators: u64::MAX,
                people: u64::MAX,
                targets: u64::MAX,
                statements: u64::MAX,
                failures: u64::MAX,
                denied: u64::MAX,
                violations: 1,
                terminated: 2,
                rights: u64::MAX,
            },
            impersonations: listed(
                Impersonation {
                    person: text(),
                    target: text(),
                    began: Some(i64::MIN / 2),
                    ended: Some(i64::MAX / 2),
                    seen: (i64::MIN, i64::MAX),
                    how: Some(text()),
                    reason: Some(text()),
                    statements: u64::MAX,
                    failures: u64::MAX,
                    origin: text(),
                    first_event: i64::MIN,
                },
                u64::MAX,
            ),
            density: vec![Density {
                person: text(),
                bin: timeline::BINS - 1,
                count: u64::MAX / 4,
            }],
            marks: [MarkKind::Denied, MarkKind::Violation, MarkKind::Terminated]
                .map(|kind| Mark {
                    person: text(),
                    at: i64::MAX,
                    kind,
                    count: 1,
                })
                .to_vec(),
            pairs: listed(
                Pair {
                    person: text(),
                    target: text(),
                    impersonations: u64::MAX,
                },
                u64::MAX,
            ),
            denied: listed(
                Denied {
                    person: text(),
                    target: Some(text()),
                    attempts: u64::MAX,
                    last: 0,
                    why: text(),
                },
                2,
            ),
            relations: listed(
                Relation {
                    name: text(),
                    accesses: [u64::MAX, 0, 1, 2, 3],
                    people: vec![text(), text()],
                    people_total: u64::MAX,
                    last: 0,
                },
                3,
            ),
            failures: listed(
                Failure {
                    sqlstate: text(),
                    count: 1,
                    people: 1,
                },
                4,
            ),
            failed: listed(incident(), 5),
            incidents: listed(incident(), 6),
            rights: listed(incident(), 7),
            record: listed(incident(), 8),
            chain: Chain {
                events: Some((i64::MIN, i64::MAX)),
                hash: Some(text()),
                verified: Verified::Broken {
                    first_bad: Some(i64::MIN),
                    damage: text(),
                    detail: text(),
                },
            },
        }
    }

    /// Panics unless each tag is one of the page's own and is closed where it should be. How many there are.
    fn well_formed(page: &str) -> usize {
        const OWN: &str =
            " html head meta title style body header main footer section nav h1 h2 p dl div dt dd ul li a b \
                           small span bdi code time table caption thead tbody tr th td br wbr svg rect line path text ";
        let mut open: Vec<&str> = Vec::new();
        let mut tags = 0;
        let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
        while let Some(at) = rest.find('<') {
            let end = at + rest[at..].find('>').expect("a tag ends");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            tags += 1;
            assert!(!tag.contains('<'), "{tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "in {open:?}");
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap();
            assert!(OWN.contains(&format!(" {name} ")), "{tag}");
            if !tag.ends_with('/') && !["meta", "br", "wbr"].contains(&name) {
                open.push(name);
            }
        }
        assert_eq!(open, [""; 0]);
        tags
    }

    #[test]
    fn whatever_is_in_the_audit_the_page_is_well_formed_and_ascii() {
        let page = page(&hostile());
        assert!(page.is_ascii());
        assert!(well_formed(&page) > 200);
        for never in ["<script", "<!--", "&#x202E;", "&#xFEFF;", "&#x0;"] {
            assert!(!page.contains(never), "{never}");
        }
        // A statement of any length is cut.
        assert!(page.len() < 120_000, "{} bytes", page.len());
        // What is said once for each list.
        for more in [
            "and 1 more person and role<",
            "and 2 more relations<",
            "and 3 more SQLSTATEs<",
            "and 4 more statements<",
            "and 5 more events<",
            "and 6 more changes<",
            "and 7 more events<",
        ] {
            assert!(page.contains(more), "{more}");
        }
    }

    #[test]
    fn an_empty_period_is_well_formed_too() {
        let page = page(&Report::default());
        assert!(well_formed(&page) > 50);
        assert!(page.contains("Nothing is on record in this period."));
        assert!(!page.contains("and 0 more"));
    }

    #[test]
    fn only_the_style_sheet_is_allowed() {
        let page = page(&Report::default());
        let policy = page.split("Content-Security-Policy\" content=\"").nth(1).unwrap();
        let policy = policy.split('"').next().unwrap();
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        assert_eq!(policy, style::policy(style));
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
        assert!(!policy.contains("unsafe"));
    }
}
